"""From files to records: reading JSON, JSONL and Parquet, telling formats apart, ids, rejects with reasons."""
