-- Everything behind a verdict: the record, its four candidates, the teacher call and the losses of each, the decision.
-- A record without scores has its rows too, with student null.
-- @grain: student, sample_id, candidate
-- @column candidate_status: ok, or why there is no such version
-- @column call_model: teacher that wrote the candidate
-- @column call_status: how that call ended
-- @column reply: the teacher's raw reply
-- @column score_status: ok, or why a pass has no loss
-- @column is_chosen: this candidate won
WITH calls AS (
    SELECT *
    FROM {{ source('lake', 'teacher_calls') }}
    QUALIFY row_number() OVER (PARTITION BY call_key ORDER BY status = 'ok' DESC, attempt DESC, created_at DESC) = 1
)

SELECT
    scores.student,
    candidates.sample_id,
    candidates.dataset,
    records.source_file,
    records.source_index,
    candidates.candidate,
    candidates.status AS candidate_status,
    candidates.instruction,
    candidates.input,
    candidates.response,
    candidates.content_key,
    candidates.call_key,
    calls.purpose AS call_purpose,
    calls.model AS call_model,
    calls.prompt_version,
    calls.status AS call_status,
    calls.error AS call_error,
    calls.finish_reason,
    calls.prompt_tokens,
    calls.completion_tokens,
    calls.cost_usd,
    calls.attempt AS call_attempts,
    calls.reply,
    scores.status AS score_status,
    scores.truncated,
    scores.n_tokens_instruction,
    scores.n_tokens_response,
    scores.loss_response,
    scores.loss_response_given_prompt,
    scores.loss_instruction,
    scores.loss_instruction_given_response,
    scores.log_ifd,
    scores.log_r_ifd,
    scores.ifd_ppl,
    scores.r_ifd_ppl,
    decisions.policy,
    decisions.branch,
    decisions.chosen = candidates.candidate AS is_chosen,
    decisions.chosen,
    decisions.outcome,
    decisions.kept,
    decisions.reason,
    decisions.compared_1,
    decisions.margin_1,
    decisions.compared_2,
    decisions.margin_2,
    decisions.policy_fingerprint
FROM {{ source('lake', 'candidates') }} AS candidates
LEFT JOIN {{ source('lake', 'raw_records') }} AS records ON records.sample_id = candidates.sample_id
LEFT JOIN calls ON calls.call_key = candidates.call_key
LEFT JOIN {{ ref('candidate_scores') }} AS scores
    ON scores.sample_id = candidates.sample_id AND scores.candidate = candidates.candidate
LEFT JOIN {{ ref('decisions') }} AS decisions
    ON decisions.sample_id = candidates.sample_id AND decisions.student = scores.student
