-- Kept share by length of the original response: IFD favours long answers, and here one sees by how much.
-- @grain: student, tokens_from
-- @column tokens_from: shortest original response of the class (tokens); classes double
-- @column tokens_to: longest original response of the class (tokens)
-- @column samples: records in the class
-- @column kept: of these, kept
-- @column kept_share: kept / samples
-- @column ifd_original: mean IFD of the originals
-- @column ifd_chosen: mean IFD of the winners
-- @column response_tokens_chosen: mean response length of the winners (tokens)
WITH lengths AS (
    SELECT
        decisions.student,
        decisions.kept,
        2 ** floor(log2(greatest(original.n_tokens_response, 1))) AS class,
        original.ifd_ppl AS ifd_original,
        winner.ifd_ppl AS ifd_chosen,
        winner.n_tokens_response AS tokens_chosen
    FROM {{ ref('decisions') }} AS decisions
    JOIN {{ ref('candidate_scores') }} AS original
        ON original.student = decisions.student AND original.sample_id = decisions.sample_id
        AND original.candidate = 'original'
    JOIN {{ ref('candidate_scores') }} AS winner
        ON winner.student = decisions.student AND winner.sample_id = decisions.sample_id
        AND winner.candidate = decisions.chosen
    WHERE original.n_tokens_response IS NOT NULL
)

SELECT
    student,
    class::BIGINT AS tokens_from,
    (2 * class - 1)::BIGINT AS tokens_to,
    count(*) AS samples,
    count(*) FILTER (kept) AS kept,
    count(*) FILTER (kept) / count(*) AS kept_share,
    avg(ifd_original) AS ifd_original,
    avg(ifd_chosen) AS ifd_chosen,
    avg(tokens_chosen) AS response_tokens_chosen
FROM lengths
GROUP BY student, class
ORDER BY student, class
