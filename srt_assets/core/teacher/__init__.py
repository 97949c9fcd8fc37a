"""The teacher: prompts and their parser, the ledger of replies, the flow of calls, money.

prompts, shield, grammar        the request: its texts, markers in records made harmless, the form of the reply
call                            a request and its content address
answers, ends, failures         reading a provider's answer; finish reasons; errors
parse, thoughts, marks          from a reply to a candidate's texts, without the model's thoughts
refusals                        recognizes refusals
ledger, sealing                 writes every reply to disk before it is parsed; makes Parquet parts of the ledger
lookup, known, fill             queries of the ledger
client, local, address          one call through LiteLLM; the embedded server; checks of api_base
health, unfit, ping             outages; settings that a model refuses; a test call
ask                             decides whether a call is needed, and how many tokens its reply may have
limits, money, engine           rate limits, budget, retries of a single call
flow, session, asking           many calls at once
survey, steps, rows, stage      from records to rows of `candidates`
instructions, responses         the two assets
dry_run, estimate, why_call     the calls a run would make, their price, why a call is no cache hit
batch                           file batches at half the price
"""
