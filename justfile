features := "--features merit-sidecar/full"

# Format, lint and unit tests: a minute or two, no servers but Redis.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets {{features}} -- -D warnings
    cargo test --workspace --exclude merit-integration {{features}}

# Everything that CI runs: real Redis, real Kafka, the real binary.
test *args:
    integration/test {{args}}

# The whole loop in one process; nothing to install.
demo *args:
    cargo run --release --bin merit -- demo {{args}}

# Criterion benchmarks.
bench *args:
    cargo bench --workspace {{features}} {{args}}

# The documentation, as docs.rs would show it.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps {{features}} --open
