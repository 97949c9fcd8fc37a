-- Records on which two students decide differently, with both verdicts. Every pair of students appears once.
-- @grain: student_a, student_b, sample_id
-- @column kind: gained (only b keeps it), lost (only a keeps it), other_candidate (both, but not the same one), verdict
-- @column log_ifd_change: log IFD of b's choice minus that of a's
-- @column log_r_ifd_change: log r-IFD of b's choice minus that of a's
SELECT
    a.student AS student_a,
    b.student AS student_b,
    a.sample_id,
    a.dataset,
    CASE
        WHEN b.kept AND NOT a.kept THEN 'gained'
        WHEN a.kept AND NOT b.kept THEN 'lost'
        WHEN a.kept AND a.chosen <> b.chosen THEN 'other_candidate'
        ELSE 'verdict'
    END AS kind,
    a.chosen AS chosen_a,
    b.chosen AS chosen_b,
    a.reason AS reason_a,
    b.reason AS reason_b,
    b.log_ifd - a.log_ifd AS log_ifd_change,
    b.log_r_ifd - a.log_r_ifd AS log_r_ifd_change
FROM {{ ref('decisions') }} AS a
JOIN {{ ref('decisions') }} AS b ON b.sample_id = a.sample_id AND b.student > a.student
WHERE a.chosen <> b.chosen OR a.reason <> b.reason
