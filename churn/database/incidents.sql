-- Statements of incidents.py; the tables change by functions of the owner.
-- open_incidents
SELECT incident_id, kind, subject, members, opened_at, reported FROM incidents WHERE resolved_at IS NULL ORDER BY incident_id
-- open
SELECT open_incident(:kind, :subject, :severity, :title, CAST(:members AS jsonb), CAST(:reported AS jsonb))
-- update
SELECT update_incident(:id, :title, CAST(:members AS jsonb), CAST(:reported AS jsonb))
-- resolve
SELECT resolve_incident(:id)
-- alert
SELECT queue_alert(:incident_id, :event, :title, :body, CAST(:receivers AS text[]))
-- next
SELECT alert_id, incident_id, event, severity, title, body, opened_at, resolved_at, kind, members, reported, n_attempts
FROM next_delivery(:receiver)
-- attempted
SELECT record_delivery(:alert_id, :receiver, :error, make_interval(secs => :retry_after_s))
-- undelivered
SELECT receiver, count(*) FROM alert_deliveries WHERE delivered_at IS NULL GROUP BY receiver
-- drop_undelivered
DELETE FROM alert_deliveries WHERE receiver = :receiver AND delivered_at IS NULL
