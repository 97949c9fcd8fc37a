-- Finetuning under different policies side by side: the latest run of every arm, against that of the active policy.
-- Losses compare only if they were measured on the same held-out records: the differences are null where the losses
-- before training show that they were not.
-- @grain: student, arm
-- @column arm: policy whose rows the student was trained on
-- @column n_train: training rows
-- @column eval_loss_before: held-out loss of the untrained student (nats per response token)
-- @column eval_loss_after: held-out loss after training (nats per response token)
-- @column is_active: the run of the active policy
-- @column improvement: eval_loss_before - eval_loss_after
-- @column behind_active: how much higher its loss after training is than the active policy's; below 0 it did better
-- @column original_behind_active: the same on the held-out records as the dataset gave them
WITH latest AS (
    SELECT *
    FROM {{ source('lake', 'training_runs') }}
    QUALIFY row_number() OVER (PARTITION BY student, arm ORDER BY finished_at DESC, run DESC) = 1
),

active AS (
    SELECT *
    FROM latest
    WHERE is_active_policy
    QUALIFY row_number() OVER (PARTITION BY student ORDER BY finished_at DESC, run DESC) = 1
),

measured AS (
    SELECT
        latest.*,
        active.run AS active_run,
        latest.n_held_out = active.n_held_out AND abs(latest.eval_loss_before - active.eval_loss_before) < 1e-3 AS comparable,
        active.eval_loss_after AS active_loss,
        active.eval_original_loss_after AS active_original_loss
    FROM latest
    LEFT JOIN active ON active.student = latest.student
)

SELECT
    student,
    arm,
    run = active_run AS is_active,
    run,
    n_train,
    n_held_out,
    steps,
    tokens,
    eval_loss_before,
    eval_loss_after,
    eval_loss_before - eval_loss_after AS improvement,
    CASE WHEN comparable THEN eval_loss_after - active_loss END AS behind_active,
    eval_original_loss_before,
    eval_original_loss_after,
    CASE WHEN comparable THEN eval_original_loss_after - active_original_loss END AS original_behind_active
FROM measured
ORDER BY student, is_active DESC, eval_loss_after, arm
