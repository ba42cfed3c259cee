"""A throw-away real Postgres and real Kafka on loopback, a local Slack receiver, and the demo."""
