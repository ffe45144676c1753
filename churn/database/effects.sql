-- above_cuts
SELECT m.account_id, m.arm, c.holdout_share, c.control_share
FROM campaign_members AS m JOIN campaigns AS c ON c.name = m.campaign
WHERE m.company = :company AND c.starts_on < :until AND coalesce(c.closed_at, 'infinity') >= :since
  -- Whoever is in an open campaign is in no other, unless that allows it; so held-out accounts are in the first.
  AND (m.arm <> 'held_out' OR c.allows_overlap OR NOT EXISTS (
      SELECT FROM campaign_members AS o JOIN campaigns AS p ON p.name = o.campaign
      WHERE o.company = m.company AND o.account_id = m.account_id AND p.selected_at < c.selected_at
        AND coalesce(p.closed_at, 'infinity') > c.selected_at
  ))
UNION ALL -- lists without a campaign contact everybody within their reach who is not held out
SELECT m.account_id, m.arm, m.holdout_share, 0
FROM list_members AS m JOIN list_exports AS x USING (export_id)
WHERE m.company = :company AND x.exported_at < :until AND x.exported_at >= :since
  AND (m.arm <> 'held_out' OR NOT EXISTS (
      SELECT FROM campaign_members AS o JOIN campaigns AS p ON p.name = o.campaign
      WHERE o.company = m.company AND o.account_id = m.account_id AND p.selected_at < x.exported_at
        AND coalesce(p.closed_at, 'infinity') > x.exported_at
  ))

-- members
SELECT m.company, m.account_id, m.variant, b.as_of, m.arm, m.score, m.value_at_risk, EXISTS (
    SELECT FROM campaign_exposures AS e
    WHERE e.campaign = m.campaign AND e.company = m.company AND e.account_id = m.account_id AND e.delivered
) AS is_exposed
FROM campaign_members AS m JOIN scoring_batches AS b ON b.batch_id = m.batch
WHERE CAST(:campaign AS text) IS NULL OR m.campaign = :campaign
