-- Length, perplexity, IFD and r-IFD of each candidate, and of what each student kept: the paper's Table 6.
-- Means of perplexities are ruled by outliers, so every mean has its median beside it.
-- @grain: student, candidate
-- @column candidate: one of the four candidates, or selected for the kept pairs
-- @column samples: candidates looked at
-- @column scored: of these, with all four passes scored
-- @column instruction_tokens: mean tokens of the instruction
-- @column response_tokens: mean tokens of the response
-- @column instruction_ppl: mean perplexity of the instruction
-- @column instruction_ppl_median: its median
-- @column response_ppl: mean perplexity of the response alone
-- @column response_ppl_median: its median
-- @column response_ppl_given_prompt: mean perplexity of the response after its instruction
-- @column response_ppl_given_prompt_median: its median
-- @column ifd: mean IFD (ratio of perplexities)
-- @column ifd_median: median IFD
-- @column r_ifd: mean r-IFD (ratio of perplexities)
-- @column r_ifd_median: median r-IFD
-- @column ifd_above_1: share of the scored whose IFD is above 1: the instruction does not help
WITH every AS (
    SELECT student, candidate, status, n_tokens_instruction, n_tokens_response, ppl_instruction, ppl_response,
        ppl_response_given_prompt, ifd_ppl, r_ifd_ppl
    FROM {{ ref('candidate_scores') }}
    UNION ALL
    SELECT scores.student, 'selected', scores.status, scores.n_tokens_instruction, scores.n_tokens_response,
        scores.ppl_instruction, scores.ppl_response, scores.ppl_response_given_prompt, scores.ifd_ppl, scores.r_ifd_ppl
    FROM {{ ref('candidate_scores') }} AS scores
    JOIN {{ ref('decisions') }} AS decisions
        ON decisions.student = scores.student AND decisions.sample_id = scores.sample_id
        AND decisions.chosen = scores.candidate AND decisions.kept
)

SELECT
    student,
    candidate,
    count(*) AS samples,
    count(*) FILTER (status = 'ok') AS scored,
    avg(n_tokens_instruction) AS instruction_tokens,
    avg(n_tokens_response) AS response_tokens,
    avg(ppl_instruction) AS instruction_ppl,
    median(ppl_instruction) AS instruction_ppl_median,
    avg(ppl_response) AS response_ppl,
    median(ppl_response) AS response_ppl_median,
    avg(ppl_response_given_prompt) AS response_ppl_given_prompt,
    median(ppl_response_given_prompt) AS response_ppl_given_prompt_median,
    avg(ifd_ppl) AS ifd,
    median(ifd_ppl) AS ifd_median,
    avg(r_ifd_ppl) AS r_ifd,
    median(r_ifd_ppl) AS r_ifd_median,
    count(*) FILTER (ifd_ppl > 1) / nullif(count(ifd_ppl), 0) AS ifd_above_1
FROM every
GROUP BY student, candidate
ORDER BY student, CASE candidate
    WHEN 'original' THEN 1 WHEN 'reflected_instruction' THEN 2 WHEN 'reflected_response' THEN 3
    WHEN 'reflected_both' THEN 4 ELSE 5 END
