# Recipes for developers and CI.

# List the recipes.
default:
    @just --list

# Install all dependencies as locked, tests and tools included.
setup:
    uv sync --locked --compile-bytecode

# Check format, lint, types, import contracts and Dagster definitions.
check:
    uv run ruff format --check .
    uv run ruff check .
    uv run mypy
    uv run lint-imports
    uv run dagster definitions validate -m orchestration.definitions

# Run the tests of README's command: under six minutes on two cores.
test *args:
    uv run pytest {{args}}

# Run the tests that README's command leaves out; tests/README.md lists them.
test-rest *args:
    uv run pytest -m slow {{args}}

# Run all tests.
test-all *args:
    uv run pytest -m "" {{args}}

# Run the tests in a random order, which its seed repeats.
test-shuffled *args:
    uv run pytest --random-order {{args}}

# Inject over a thousand faults, or those named, and count what is lost; writes docs/reliability.md.
faults *args:
    uv run python -m tests.faults {{args}}

# Write the alert rules of Prometheus, Grafana and CloudWatch from their one source.
alert-rules:
    uv run python infra/make_alert_rules.py

# Build the documentation into site/; fails on any warning.
docs:
    uv run python docs/build.py

# Write docs/reference from the code: settings, commands, tables, Dagster.
reference:
    uv run python docs/generate.py

# Give ten thousand bad inputs to every reader; writes docs/hostile-input.md.
hostile *args:
    uv run python -m tests.hostile {{args}}

# Check for known vulnerabilities, secrets and dangerous code; fails when its data is unavailable.
audit:
    uv run ruff check --select S .
    git ls-files -z | xargs -0 uv run --group audit detect-secrets-hook --no-verify --exclude-files '^(uv\.lock|data/|.*\.(png|svg|ubj|bin))$' --exclude-lines 'noqa: S10[567]|://\w+:(password|hunter2|p)@|"bench"' --exclude-secrets 'hunter2|p@ss'
    bash -o pipefail -c 'uv export --quiet --locked --all-groups --no-emit-project --no-hashes | uv run --group audit pip-audit --strict --disable-pip --no-deps --progress-spinner off -r /dev/stdin'

# Write a CycloneDX bill of materials to sbom.json.
sbom:
    bash -o pipefail -c 'uv export --quiet --locked --no-dev --extra kubernetes --no-emit-project --no-hashes | uv run --group audit cyclonedx-py requirements - --output-reproducible --of JSON -o sbom.json'

# Rebuild data/churn and models/churn from the simulator, byte for byte.
artifacts:
    uv run python data/make_artifacts.py

# Retake the documentation's screenshots in headless Chromium.
screenshots:
    uv run python docs/screenshots.py

# Benchmark against the naive way and the limit, or parts of it (--only fleet cores); writes benchmarks/RESULTS.md.
bench *args:
    uv run --group bench python -m benchmarks {{args}}

# Simulate a year of 20 variants in the realistic world with alerts, retraining, promotion and rollback; writes benchmarks/YEAR.md.
year *args:
    uv run python -m benchmarks.year {{args}}

# Measure the quality of the scores and the cost of the features against their targets; writes benchmarks/QUALITY.md.
quality *args:
    uv run --group bench python -m benchmarks.quality {{args}}

# Serve the Dagster and MLflow UIs on this machine.
up:
    uv run churn up

# Write the passwords that docker-compose.yml requires into .env; keeps existing lines.
env:
    uv run python infra/compose/make_env.py

# Start docker-compose.yml with Prometheus and Grafana, and wait until all services are healthy.
compose-up *args:
    docker compose --profile monitoring up --detach --wait {{args}}

# Lint the Dockerfile, and check docker-compose.yml against Compose's schema; neither needs Docker.
lint-docker:
    uv run hadolint Dockerfile
    uv run check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

# Check the workflows against GitHub's schema and for common vulnerabilities.
lint-workflows:
    uv run check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
    uv run zizmor --offline .

# Build the image that all our services use.
image tag="churn-scoring:local" *args="--load":
    docker buildx build --build-arg CODE_VERSION="$(git rev-parse HEAD)" --tag {{tag}} {{args}} .

# Check format, validity and security of the Terraform and Kubernetes files.
infra:
    terraform fmt -check -recursive infra/terraform
    terraform -chdir=infra/terraform init -backend=false -input=false -lockfile=readonly
    terraform -chdir=infra/terraform validate
    uvx checkov==3.3.30 -d infra/terraform --framework terraform --quiet --compact --skip-download --var-file infra/terraform/environments/production/values.tfvars
    uvx checkov==3.3.30 -d infra/kubernetes --framework kubernetes --quiet --compact --skip-download

# Deploy an image by its digest to staging or production with your AWS role; CI requires approval first.
deploy environment image:
    TF_DATA_DIR="$PWD/infra/terraform/environments/{{environment}}/.terraform" terraform -chdir=infra/terraform init -input=false -lockfile=readonly -backend-config=environments/{{environment}}/backend.hcl
    TF_DATA_DIR="$PWD/infra/terraform/environments/{{environment}}/.terraform" terraform -chdir=infra/terraform apply -input=false -auto-approve -var-file=environments/{{environment}}/values.tfvars -var={{quote("image=" + image)}}
