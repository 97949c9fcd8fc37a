-- What the teacher was asked, answered and cost, by model, prompt and purpose.
-- @grain: model, prompt_version, purpose, status
-- @column status: ok, or the kind of failure
-- @column calls: attempts, failed ones too
-- @column retries: of these, not the first of their request
-- @column prompt_tokens: tokens sent
-- @column completion_tokens: tokens received
-- @column cost_usd: price (USD); null if none of the calls has a known price
-- @column unpriced_calls: calls without a known price
-- @column latency_s: median seconds from request to reply
SELECT
    model,
    prompt_version,
    purpose,
    status,
    count(*) AS calls,
    count(*) FILTER (attempt > 1) AS retries,
    sum(prompt_tokens) AS prompt_tokens,
    sum(completion_tokens) AS completion_tokens,
    sum(cost_usd) AS cost_usd,
    count(*) FILTER (cost_usd IS NULL) AS unpriced_calls,
    median(latency_s) AS latency_s,
    min(created_at) AS first_at,
    max(created_at) AS last_at
FROM {{ source('lake', 'teacher_calls') }}
GROUP BY model, prompt_version, purpose, status
ORDER BY model, prompt_version, purpose, status
