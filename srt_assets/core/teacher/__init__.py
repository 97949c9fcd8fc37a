"""The teacher: prompts and their parser, the ledger of replies, the flow of calls, money. One room, one job each.

prompts, shield, grammar   what is asked, in a frame that data cannot leave
call                       a request and its content address
answers, ends              what came back, in all its shapes; how it ended
parse, thoughts, marks     what a reply is worth, without what the model thought first
ledger, lookup             every reply on disk before it is looked at; finding it again
client, local, failures    one call through LiteLLM; the embedded server; what an error means
health, unfit, ping        is the teacher up; settings it refuses; one tiny call to learn all that
ask                        must a call still be asked, and how many tokens may its reply have
limits, money, engine      rate, budget, retries of a single call
flow, steps, stage         many calls at once; from records to rows of `candidates`
instructions, responses    the two assets
estimate, explain, batch   money still to pay, why a call is no hit, file batches at half the price
"""
