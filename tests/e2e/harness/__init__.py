"""Real clients, a real upstream and the mirror under test, each as a process on loopback addresses."""
