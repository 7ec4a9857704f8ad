"""The routes of the REST API: what each is called with and answers, and which use case it is."""
