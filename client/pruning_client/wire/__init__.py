"""Between the public values and the wire's messages; nothing else of this package builds or reads messages' fields."""
