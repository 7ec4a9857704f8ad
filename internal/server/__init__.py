"""HTTP and WebSockets: sockets in, sockets out, no rules."""
