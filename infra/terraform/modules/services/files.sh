cp -R /opt/dagster/. /mnt/dagster
printf '\n%s' "$INSTANCE" >>/mnt/dagster/dagster.yaml
printf '%s' "$WORKSPACE" >/mnt/dagster/workspace.yaml
printf '%s' "$DATABASE_CA" >/mnt/dagster/rds-ca.pem
chown -R 10001:10001 /mnt/dagster /mnt/home /mnt/tmp
