# Recipes for people and for CI, which calls the same ones.

# List the recipes.
default:
    @just --list

# Install everything, tests and tools included, as locked.
setup:
    uv sync --locked

# Format, lint, types, import arrows, Dagster definitions.
check:
    uv run ruff format --check .
    uv run ruff check .
    uv run mypy
    uv run lint-imports
    uv run dagster definitions validate -m orchestration.definitions

# All tests but the slow ones.
test *args:
    uv run pytest {{args}}

# The slow ones: faults and scale.
test-slow *args:
    uv run pytest -m slow {{args}}

# Kill and break everything, hundreds of times, and count what was lost; writes docs/reliability.md.
faults *args:
    uv run python -m tests.faults {{args}}

# Build the documentation into site/; any warning fails it.
docs:
    uv run python docs/build.py

# Write docs/reference from the code: settings, commands, tables, Dagster.
reference:
    uv run python docs/generate.py

# Feed every reader ten thousand bad inputs; writes docs/hostile-input.md.
hostile *args:
    uv run python -m tests.hostile {{args}}

# Known holes, secrets in the repository, dangerous code; fails when it cannot get at its data.
audit:
    uv run ruff check --select S .
    git ls-files -z | xargs -0 uv run --group audit detect-secrets-hook --no-verify --exclude-files '^(uv\.lock|data/|.*\.(png|svg|ubj|bin))$' --exclude-lines 'noqa: S10[567]|://\w+:(password|hunter2|p)@|"bench"' --exclude-secrets 'hunter2|p@ss'
    bash -o pipefail -c 'uv export --quiet --locked --all-groups --no-emit-project --no-hashes | uv run --group audit pip-audit --strict --disable-pip --no-deps --progress-spinner off -r /dev/stdin'

# What is inside, as CycloneDX.
sbom:
    bash -o pipefail -c 'uv export --quiet --locked --no-dev --extra kubernetes --no-emit-project --no-hashes | uv run --group audit cyclonedx-py requirements - --output-reproducible --of JSON -o sbom.json'

# Rebuild data/churn and models/churn from the simulator, byte for byte.
artifacts:
    uv run python -m churn.samples.artifacts

# Retake the README's screenshots in headless Chromium.
screenshots:
    uv run python docs/screenshots.py

# Compare with the naive way and with the limit; writes benchmarks/RESULTS.md. Half an hour on two cores.
bench *args:
    uv run --group bench python -m benchmarks {{args}}

# Live through a simulated year of 20 variants: triggers, challengers, promotions, rollback; writes benchmarks/YEAR.md.
year *args:
    uv run python -m benchmarks.year {{args}}

# Serve both UIs on this machine.
up:
    uv run churn up

# Write into .env the passwords that docker-compose.yml demands; what is there stays.
env:
    uv run python infra/compose/make_env.py

# Start docker-compose.yml, Prometheus and Grafana included, and wait until all is healthy.
compose-up *args:
    docker compose --profile monitoring up --detach --wait {{args}}

# The Dockerfile, and docker-compose.yml against Compose's schema; neither needs Docker.
lint-docker:
    uv run hadolint Dockerfile
    uv run check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

# The workflows: GitHub's schema, and the usual holes.
lint-workflows:
    uv run check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
    uv run zizmor --offline .

# Build the image of all our services.
image tag="churn-scoring:local" *args="--load":
    docker buildx build --build-arg CODE_VERSION="$(git rev-parse HEAD)" --tag {{tag}} {{args}} .

# The Terraform and the Kubernetes files: format, validity, and the usual holes.
infra:
    terraform fmt -check -recursive infra/terraform
    terraform -chdir=infra/terraform init -backend=false -input=false -lockfile=readonly
    terraform -chdir=infra/terraform validate
    uvx checkov==3.3.30 -d infra/terraform --framework terraform --quiet --compact --skip-download --var-file infra/terraform/environments/production/values.tfvars
    uvx checkov==3.3.30 -d infra/kubernetes --framework kubernetes --quiet --compact --skip-download

# Deploy an image, by its digest, to staging or production with the AWS role of whoever runs this; CI asks for approval first.
deploy environment image:
    TF_DATA_DIR="$PWD/infra/terraform/environments/{{environment}}/.terraform" terraform -chdir=infra/terraform init -input=false -lockfile=readonly -backend-config=environments/{{environment}}/backend.hcl
    TF_DATA_DIR="$PWD/infra/terraform/environments/{{environment}}/.terraform" terraform -chdir=infra/terraform apply -input=false -auto-approve -var-file=environments/{{environment}}/values.tfvars -var={{quote("image=" + image)}}
