"""Who talks to us: sessions, the server, the client, and the relay between a Gadgetron and the server."""
