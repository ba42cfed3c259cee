"""Kafka: the only hall that imports kafka."""
