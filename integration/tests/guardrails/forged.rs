//! A checkpoint as somebody else could make it: another weight, and a checksum that fits.
//!
//! Written from the format's description (`docs/policy/ppo.md` and safetensors'), not with the library: what the
//! library writes is sound.

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;

/// Returns the checkpoint in `bytes` with `weight` for the first number of its first tensor by name that no
/// optimizer owns.
pub(super) fn with_weight(bytes: &[u8], weight: f32) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let length = usize::try_from(length).expect("a short header");
    let (header, data) = bytes[8..].split_at(length);
    let text = std::str::from_utf8(header).expect("a header is text");
    let mut data = data.to_vec();
    let header: Value = serde_json::from_str(text).expect("a header is JSON");
    let tensors = header.as_object().expect("an object").iter();
    let mut tensors: Vec<(&String, std::ops::Range<usize>)> = tensors
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, tensor)| {
            let at = |end: usize| tensor["data_offsets"][end].as_u64().expect("an offset");
            let at = |end| usize::try_from(at(end)).expect("a small file");
            (name, at(0)..at(1))
        })
        .collect();
    tensors.sort_by_key(|(name, _)| *name);
    let (_, place) = tensors.iter().find(|(name, _)| !name.starts_with("adam.")).expect("weights");
    data[place.start..place.start + 4].copy_from_slice(&weight.to_le_bytes());

    // The hash is over the entry without its hash, and over each tensor behind its name, each behind its
    // length.
    let entry = header["__metadata__"]["merit"].as_str().expect("the entry is text");
    let written: Value = serde_json::from_str(entry).expect("the entry is JSON");
    let written = written["sha256"].as_str().expect("a checkpoint has a hash");
    let mut hash = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(entry.replace(written, "").as_bytes());
    for (name, place) in &tensors {
        part(name.as_bytes());
        part(&data[place.clone()]);
    }
    let hash: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let header = text.replace(written, &hash);
    [&bytes[..8], header.as_bytes(), &data].concat()
}
