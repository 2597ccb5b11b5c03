"""A model checker: clients at random, a server that is killed again and again, and a history that is held to promises."""
