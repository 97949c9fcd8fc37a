-- The rule: one verdict per student and sample under each active policy. This file is the only place it is written.
-- A tree of two comparisons. First the reflected instruction against the original, then, on the winner's side, the
-- reflected response against the response it would replace. A policy (a row of `policies`) says what is compared, what
-- the winner must fulfil to be kept, and whether only the best are kept. Ratios are compared as logarithms.
-- A challenger must be strictly better; one without a finite value on either side, one that is not ok, and a copy of
-- the original lose. The asset selected_set runs this file for its student and stores the rows as the table decisions.
-- @grain: student, sample_id, policy
WITH active AS (
    SELECT * FROM {{ source('lake', 'policies') }} WHERE active
),

students AS (
    SELECT DISTINCT student FROM active
),

-- The scores of a sample's candidates side by side. An aggregate instead of self joins: a quarter of the memory, and it
-- spills. CASE, not FILTER: half the time, for a filtered aggregate copies all its inputs once more. A candidate has one
-- row at most, so max takes its value.
scored AS (
    SELECT
        student,
        sample_id,
        max(CASE WHEN candidate = 'original' THEN unscored END) AS unscored_original,
        max(CASE WHEN candidate = 'reflected_instruction' THEN unscored END) AS unscored_instruction,
        max(CASE WHEN candidate = 'reflected_response' THEN unscored END) AS unscored_response,
        max(CASE WHEN candidate = 'reflected_both' THEN unscored END) AS unscored_both,
        max(CASE WHEN candidate = 'original' THEN text_hash END) AS text_original,
        max(CASE WHEN candidate = 'reflected_instruction' THEN text_hash END) AS text_instruction,
        max(CASE WHEN candidate = 'reflected_response' THEN text_hash END) AS text_response,
        max(CASE WHEN candidate = 'reflected_both' THEN text_hash END) AS text_both,
        max(CASE WHEN candidate = 'original' THEN log_ifd END) AS ifd_original,
        max(CASE WHEN candidate = 'reflected_instruction' THEN log_ifd END) AS ifd_instruction,
        max(CASE WHEN candidate = 'reflected_response' THEN log_ifd END) AS ifd_response,
        max(CASE WHEN candidate = 'reflected_both' THEN log_ifd END) AS ifd_both,
        max(CASE WHEN candidate = 'original' THEN log_r_ifd END) AS r_ifd_original,
        max(CASE WHEN candidate = 'reflected_instruction' THEN log_r_ifd END) AS r_ifd_instruction,
        max(CASE WHEN candidate = 'reflected_response' THEN log_r_ifd END) AS r_ifd_response,
        max(CASE WHEN candidate = 'reflected_both' THEN log_r_ifd END) AS r_ifd_both,
        max(CASE WHEN candidate = 'original' THEN loss END) AS loss_original,
        max(CASE WHEN candidate = 'reflected_instruction' THEN loss END) AS loss_instruction,
        max(CASE WHEN candidate = 'reflected_response' THEN loss END) AS loss_response,
        max(CASE WHEN candidate = 'reflected_both' THEN loss END) AS loss_both,
        max(CASE WHEN candidate = 'original' THEN n_tokens END) AS n_original,
        max(CASE WHEN candidate = 'reflected_instruction' THEN n_tokens END) AS n_instruction,
        max(CASE WHEN candidate = 'reflected_response' THEN n_tokens END) AS n_response,
        max(CASE WHEN candidate = 'reflected_both' THEN n_tokens END) AS n_both
    FROM (
        SELECT
            student,
            sample_id,
            candidate,
            CASE WHEN status NOT IN ('ok', 'candidate_not_ok') THEN status END AS unscored,
            CASE WHEN content_key IS NOT NULL THEN hash(content_key) END AS text_hash,
            log_ifd,
            log_r_ifd,
            loss_response_given_prompt AS loss,
            n_tokens_response::INTEGER AS n_tokens
        FROM {{ ref('candidate_scores') }}
        WHERE student IN (SELECT student FROM students)
    )
    GROUP BY student, sample_id
),

-- The few candidates that are not ok, with the reason.
flawed AS (
    SELECT
        sample_id,
        max(CASE WHEN candidate = 'original' THEN status END) AS flaw_original,
        max(CASE WHEN candidate = 'reflected_instruction' THEN status END) AS flaw_instruction,
        max(CASE WHEN candidate = 'reflected_response' THEN status END) AS flaw_response,
        max(CASE WHEN candidate = 'reflected_both' THEN status END) AS flaw_both
    FROM {{ source('lake', 'candidates') }}
    WHERE status <> 'ok'
    GROUP BY sample_id
),

-- Every record gets a verdict, scored or not.
records AS (
    SELECT students.student, candidates.sample_id, candidates.dataset
    FROM {{ source('lake', 'candidates') }} AS candidates, students
    WHERE candidates.candidate = 'original'
),

samples AS (
    SELECT records.*, flawed.* EXCLUDE (sample_id), scored.* EXCLUDE (student, sample_id)
    FROM scored
    RIGHT JOIN records ON scored.student = records.student AND scored.sample_id = records.sample_id
    LEFT JOIN flawed ON flawed.sample_id = records.sample_id
),

-- The first comparison: the reflected instruction challenges the original.
first_sides AS (
    SELECT
        samples.*,
        active.* EXCLUDE (student, active),
        CASE
            WHEN flaw_instruction IS NOT NULL THEN flaw_instruction
            WHEN text_instruction = text_original THEN 'copy_of_original'
        END AS unfit_1,
        CASE compare_1
            WHEN 'ifd' THEN ifd_instruction - ifd_original
            WHEN 'r_ifd' THEN r_ifd_original - r_ifd_instruction
            WHEN 'perplexity' THEN loss_original - loss_instruction
            WHEN 'longest' THEN n_instruction - n_original
            WHEN 'random' THEN md5_number_lower(seed || ':instruction:' || sample_id) % 2
        END AS margin_1,
        filter_before_compare AND NOT (
            coalesce(ifd_instruction < log_ifd_below, log_ifd_below IS NULL)
            AND coalesce(r_ifd_instruction < log_r_ifd_below, log_r_ifd_below IS NULL)
        ) AS challenger_out_1,
        filter_before_compare AND NOT (
            coalesce(ifd_original < log_ifd_below, log_ifd_below IS NULL)
            AND coalesce(r_ifd_original < log_r_ifd_below, log_r_ifd_below IS NULL)
            AND flaw_original IS NULL
        ) AS defender_out_1
    FROM samples
    JOIN active USING (student)
),

first_verdict AS (
    SELECT
        *,
        CASE
            WHEN compare_1 = 'always' THEN 'wins_always'
            WHEN compare_1 = 'never' THEN 'never_competes'
            WHEN unfit_1 IS NOT NULL THEN unfit_1
            WHEN challenger_out_1 THEN 'filtered_out'
            WHEN defender_out_1 THEN 'wins_over_filtered_out'
            WHEN margin_1 IS NULL THEN coalesce(unscored_instruction, unscored_original, 'not_scored')
            WHEN margin_1 > 0 THEN 'wins'
            ELSE 'not_better'
        END AS compared_1
    FROM first_sides
),

-- The second comparison: the reflected response challenges the winner of the first.
second_sides AS (
    SELECT
        *,
        starts_with(compared_1, 'wins') AS instruction_won,
        CASE WHEN instruction_won THEN flaw_both ELSE flaw_response END AS flaw_c,
        CASE WHEN instruction_won THEN flaw_instruction ELSE flaw_original END AS flaw_d,
        CASE WHEN instruction_won THEN unscored_both ELSE unscored_response END AS unscored_c,
        CASE WHEN instruction_won THEN unscored_instruction ELSE unscored_original END AS unscored_d,
        CASE WHEN instruction_won THEN text_both ELSE text_response END AS text_c,
        CASE WHEN instruction_won THEN text_instruction ELSE text_original END AS text_d,
        CASE WHEN instruction_won THEN ifd_both ELSE ifd_response END AS ifd_c,
        CASE WHEN instruction_won THEN ifd_instruction ELSE ifd_original END AS ifd_d,
        CASE WHEN instruction_won THEN r_ifd_both ELSE r_ifd_response END AS r_ifd_c,
        CASE WHEN instruction_won THEN r_ifd_instruction ELSE r_ifd_original END AS r_ifd_d,
        CASE WHEN instruction_won THEN loss_both ELSE loss_response END AS loss_c,
        CASE WHEN instruction_won THEN loss_instruction ELSE loss_original END AS loss_d,
        CASE WHEN instruction_won THEN n_both ELSE n_response END AS n_c,
        CASE WHEN instruction_won THEN n_instruction ELSE n_original END AS n_d
    FROM first_verdict
),

second_margin AS (
    SELECT
        *,
        CASE
            WHEN flaw_c IS NOT NULL THEN flaw_c
            WHEN text_c = text_original THEN 'copy_of_original'
            WHEN text_c = text_d THEN 'copy_of_the_other'
        END AS unfit_2,
        CASE compare_2
            WHEN 'ifd' THEN ifd_c - ifd_d
            WHEN 'r_ifd' THEN r_ifd_d - r_ifd_c
            WHEN 'perplexity' THEN loss_d - loss_c
            WHEN 'longest' THEN n_c - n_d
            WHEN 'random' THEN md5_number_lower(seed || ':response:' || sample_id) % 2
        END AS margin_2,
        filter_before_compare AND NOT (
            coalesce(ifd_c < log_ifd_below, log_ifd_below IS NULL)
            AND coalesce(r_ifd_c < log_r_ifd_below, log_r_ifd_below IS NULL)
        ) AS challenger_out_2,
        filter_before_compare AND NOT (
            coalesce(ifd_d < log_ifd_below, log_ifd_below IS NULL)
            AND coalesce(r_ifd_d < log_r_ifd_below, log_r_ifd_below IS NULL)
            AND flaw_d IS NULL
        ) AS defender_out_2
    FROM second_sides
),

second_verdict AS (
    SELECT
        *,
        CASE
            WHEN compare_2 = 'always' THEN 'wins_always'
            WHEN compare_2 = 'never' THEN 'never_competes'
            WHEN unfit_2 IS NOT NULL THEN unfit_2
            WHEN challenger_out_2 THEN 'filtered_out'
            WHEN defender_out_2 THEN 'wins_over_filtered_out'
            WHEN margin_2 IS NULL THEN coalesce(unscored_c, unscored_d, 'not_scored')
            WHEN margin_2 > 0 THEN 'wins'
            ELSE 'not_better'
        END AS compared_2,
        starts_with(compared_2, 'wins') AS response_won
    FROM second_margin
),

winners AS (
    SELECT
        *,
        CASE WHEN response_won THEN flaw_c ELSE flaw_d END AS flaw,
        CASE WHEN response_won THEN unscored_c ELSE unscored_d END AS unscored,
        CASE WHEN response_won THEN ifd_c ELSE ifd_d END AS log_ifd,
        CASE WHEN response_won THEN r_ifd_c ELSE r_ifd_d END AS log_r_ifd,
        CASE WHEN response_won THEN loss_c ELSE loss_d END AS loss,
        CASE WHEN response_won THEN n_c ELSE n_d END AS n_tokens
    FROM second_verdict
),

-- What the policy needs of its winner: it is ok, has every number that was compared or is limited, and is within limits.
judged AS (
    SELECT
        student,
        sample_id,
        dataset,
        policy,
        instruction_won,
        response_won,
        compared_1,
        margin_1,
        compared_2,
        margin_2,
        log_ifd,
        log_r_ifd,
        CASE
            WHEN flaw IS NOT NULL THEN 'rejected_' || flaw
            WHEN ('ifd' IN (compare_1, compare_2) OR log_ifd_below IS NOT NULL) AND log_ifd IS NULL
                OR ('r_ifd' IN (compare_1, compare_2) OR log_r_ifd_below IS NOT NULL) AND log_r_ifd IS NULL
                OR 'perplexity' IN (compare_1, compare_2) AND loss IS NULL
                OR 'longest' IN (compare_1, compare_2) AND n_tokens IS NULL
                THEN 'rejected_' || coalesce(unscored, 'not_scored')
            WHEN response_reflected_only AND NOT response_won THEN 'response_not_reflected'
            WHEN log_ifd >= log_ifd_below THEN 'ifd_not_below_1'
            WHEN log_r_ifd >= log_r_ifd_below THEN 'r_ifd_not_below_1'
            ELSE 'kept'
        END AS verdict
    FROM winners
),

-- Places of those kept so far where only the best stay: highest IFD first, equal ones in order of their ids. Only the
-- columns that ranking needs, and no row at all without top-k: sorting everything would cost more than deciding it.
places AS (
    SELECT
        judged.student,
        judged.policy,
        judged.sample_id,
        CASE WHEN active.top_k_per_dataset THEN judged.dataset END AS pool,
        row_number() OVER (
            PARTITION BY judged.student, judged.policy, pool ORDER BY judged.log_ifd DESC NULLS LAST, judged.sample_id
        ) AS place,
        count(*) OVER (PARTITION BY judged.student, judged.policy, pool) AS n_kept
    FROM judged
    JOIN active USING (student, policy)
    WHERE judged.verdict = 'kept' AND (active.top_k_count IS NOT NULL OR active.top_k_share IS NOT NULL)
),

ranked AS (
    SELECT
        judged.*,
        places.place,
        places.n_kept,
        active.top_k_count,
        active.top_k_share,
        active.policy_fingerprint
    FROM judged
    JOIN active USING (student, policy)
    LEFT JOIN places USING (student, policy, sample_id)
)

SELECT
    student,
    sample_id,
    dataset,
    policy,
    CASE
        WHEN instruction_won AND response_won THEN 'instruction+response'
        WHEN instruction_won THEN 'instruction'
        WHEN response_won THEN 'response'
        ELSE 'neither'
    END AS branch,
    CASE
        WHEN instruction_won AND response_won THEN 'reflected_both'
        WHEN instruction_won THEN 'reflected_instruction'
        WHEN response_won THEN 'reflected_response'
        ELSE 'original'
    END AS chosen,
    CASE
        WHEN verdict = 'kept' AND place > top_k_count THEN 'below_top_k'
        -- The factor 1 + 1e-12 undoes rounding: 0.29 * 100 is 28.999999999999996, and its floor must be 29.
        WHEN verdict = 'kept' AND place > greatest(1, floor(top_k_share * n_kept * (1 + 1e-12))) AND top_k_share IS NOT NULL
            THEN 'below_top_k'
        ELSE verdict
    END AS reason,
    reason = 'kept' AS kept,
    CASE
        WHEN kept THEN 'kept'
        WHEN starts_with(reason, 'rejected_') THEN 'rejected'
        ELSE 'not_chosen'
    END AS outcome,
    compared_1,
    margin_1,
    compared_2,
    margin_2,
    log_ifd,
    log_r_ifd,
    policy_fingerprint
FROM ranked
