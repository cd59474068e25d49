"""The network: sockets, connections, and the limits on what a client may make us wait for or hold."""
