"""What leaves the house: tables, files and Slack messages."""
