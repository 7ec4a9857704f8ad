"""What outlives the process: users, conversations, messages, responses, in SQLite or PostgreSQL."""
