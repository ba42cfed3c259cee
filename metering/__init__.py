"""Usage metering and billing for companies that serve AI models: cost, margin and use of contracted compute."""

__version__ = "0.1.0"
