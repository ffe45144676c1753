"""PostgreSQL: the server, the connections to it and the tables of predictions."""
