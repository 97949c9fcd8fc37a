-- The student's scores of every candidate: losses, perplexities and the two ratios, made in log space.
-- loss = sum_nll / n_tokens (nats per token). A pass that failed, scored no token or is not finite has null, never a
-- number. Ratios of perplexities decide; ratios of losses are the older definition and only for comparison.
-- @grain: student, sample_id, candidate
-- @column status: ok if all four passes have a loss, else why the first of them has none
-- @column n_tokens_instruction: tokens of the instruction that were scored
-- @column n_tokens_response: tokens of the response that were scored
-- @column loss_response: L(y), nats per token
-- @column loss_response_given_prompt: L(y|x), nats per token
-- @column loss_instruction: L(x), nats per token
-- @column loss_instruction_given_response: L(x|y'), nats per token
-- @column ppl_response: exp L(y)
-- @column ppl_response_given_prompt: exp L(y|x)
-- @column ppl_instruction: exp L(x)
-- @column ppl_instruction_given_response: exp L(x|y')
-- @column log_ifd: L(y|x) - L(y); below 0 the instruction helps
-- @column log_r_ifd: L(x|y') - L(x); below 0 the response helps
-- @column ifd_ppl: exp(log_ifd), the IFD of the paper's equation 3
-- @column r_ifd_ppl: exp(log_r_ifd), the r-IFD of the paper's equation 8
-- @column ifd_loss: L(y|x) / L(y)
-- @column r_ifd_loss: L(x|y') / L(x)
-- @column truncated: a target was cut to fit max_length
WITH means AS (
    SELECT
        student,
        sample_id,
        candidate,
        content_key,
        student_fingerprint,
        n_tokens_instruction,
        n_tokens_response,
        coalesce(truncated_response, false)
            OR coalesce(truncated_response_given_prompt, false)
            OR coalesce(truncated_instruction, false)
            OR coalesce(truncated_instruction_given_response, false) AS truncated,
        CASE
            WHEN status_response <> 'ok' THEN status_response
            WHEN status_response_given_prompt <> 'ok' THEN status_response_given_prompt
            WHEN status_instruction <> 'ok' THEN status_instruction
            WHEN status_instruction_given_response <> 'ok' THEN status_instruction_given_response
        END AS failure,
        CASE WHEN status_response = 'ok' AND n_tokens_response > 0 AND isfinite(sum_nll_response)
            THEN sum_nll_response / n_tokens_response END AS loss_response,
        CASE WHEN status_response_given_prompt = 'ok' AND n_tokens_response_given_prompt > 0
                AND isfinite(sum_nll_response_given_prompt)
            THEN sum_nll_response_given_prompt / n_tokens_response_given_prompt END AS loss_response_given_prompt,
        CASE WHEN status_instruction = 'ok' AND n_tokens_instruction > 0 AND isfinite(sum_nll_instruction)
            THEN sum_nll_instruction / n_tokens_instruction END AS loss_instruction,
        CASE WHEN status_instruction_given_response = 'ok' AND n_tokens_instruction_given_response > 0
                AND isfinite(sum_nll_instruction_given_response)
            THEN sum_nll_instruction_given_response / n_tokens_instruction_given_response
        END AS loss_instruction_given_response
    FROM {{ ref('final_scores') }}
),
ratios AS (
    SELECT
        *,
        loss_response_given_prompt - loss_response AS log_ifd,
        loss_instruction_given_response - loss_instruction AS log_r_ifd
    FROM means
)
SELECT
    student,
    sample_id,
    candidate,
    content_key,
    student_fingerprint,
    CASE
        WHEN failure IS NOT NULL THEN failure
        WHEN log_ifd IS NULL OR log_r_ifd IS NULL THEN 'not_finite'
        ELSE 'ok'
    END AS status,
    truncated,
    n_tokens_instruction,
    n_tokens_response,
    loss_response,
    loss_response_given_prompt,
    loss_instruction,
    loss_instruction_given_response,
    exp(loss_response) AS ppl_response,
    exp(loss_response_given_prompt) AS ppl_response_given_prompt,
    exp(loss_instruction) AS ppl_instruction,
    exp(loss_instruction_given_response) AS ppl_instruction_given_response,
    log_ifd,
    log_r_ifd,
    exp(log_ifd) AS ifd_ppl,
    exp(log_r_ifd) AS r_ifd_ppl,
    CASE WHEN loss_response > 0 THEN loss_response_given_prompt / loss_response END AS ifd_loss,
    CASE WHEN loss_instruction > 0 THEN loss_instruction_given_response / loss_instruction END AS r_ifd_loss
FROM ratios
