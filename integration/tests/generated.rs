//! What is committed under `sidecar/schema/generated` is what the `.proto` generates.
//!
//! Users, and the build, need no protoc. After a change of the `.proto`, write the files anew with
//! `MERIT_REGENERATE=1 cargo test -p merit-integration --features merit-sidecar/full --test generated`.

use std::path::{Path, PathBuf};

use prost::Message as _;
use protox::prost_reflect::prost_types::FileDescriptorSet;

fn schema() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sidecar/schema")
}

/// Compiles the `.proto`; comments are kept when they become documentation.
fn compile(comments: bool) -> FileDescriptorSet {
    let mut compiler = protox::Compiler::new([schema()]).expect("the folder of schemas is there");
    compiler.include_source_info(comments);
    compiler.open_file("merit/rating/v1/rating.proto").expect("the .proto is well formed");
    compiler.file_descriptor_set()
}

/// Returns the files that belong under `generated`.
fn generate() -> Vec<(&'static str, Vec<u8>)> {
    let folder = merit_integration::Folder::new("generated");
    let read = |name: &str| std::fs::read(folder.path().join(name)).expect("it was generated");
    let mut messages = prost_build::Config::new();
    // In order of their keys: one rating has one encoding.
    messages.btree_map(["."]).out_dir(folder.path());
    messages.compile_fds(compile(true)).expect("messages can be generated");
    let of_messages = read("merit.rating.v1.rs");
    // What a caller with tonic generates for itself.
    tonic_prost_build::configure()
        .build_server(false)
        .out_dir(folder.path())
        .compile_fds(compile(true))
        .expect("a client can be generated");
    let of_client = read("merit.rating.v1.rs");
    vec![
        ("merit.rating.v1.rs", of_messages),
        ("merit.rating.v1.client.rs", of_client),
        ("merit.rating.v1.bin", compile(false).encode_to_vec()),
    ]
}

#[test]
fn what_is_committed_is_what_the_proto_generates() {
    let folder = schema().join("generated");
    for (name, expected) in generate() {
        let path = folder.join(name);
        if std::env::var_os("MERIT_REGENERATE").is_some() {
            std::fs::write(&path, &expected).expect("the folder can be written to");
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(
            committed == expected,
            "{} is not what the .proto generates; see the first lines of this test",
            path.display()
        );
    }
}
