// Empty: included, but not used, by the sources that are compiled.
