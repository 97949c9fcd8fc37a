"""SQL: the models of `dbt_like_sql/`, the published `srt.duckdb`, and safe reading from it."""
