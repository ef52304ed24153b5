"""Several worker processes behind one port: real processes, killed, stopped and counted."""
