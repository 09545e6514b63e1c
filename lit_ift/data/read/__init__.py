"""A place to records: files, folders and the Hugging Face hub, each row with its origin."""
