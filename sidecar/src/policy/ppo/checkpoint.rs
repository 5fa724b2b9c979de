//! What a learner is on disk: a safetensors file that says what it is and proves that it is whole.
//!
//! Networks and Adam's moments are tensors that any safetensors tool reads. The metadata has one entry,
//! `merit`: a JSON object with the format's version, the policy's name, the shapes, the seed, the counts
//! of updates and steps, notes of whoever wrote it, and a SHA-256 over all of that and the tensors.
//!
//! 1. The same learner gives the same bytes.
//! 2. Bytes that are not a whole checkpoint of the expected shape with finite numbers are an error,
//!    never a learner.
//! 3. Bytes of a newer version are an error that says so, whatever else they hold.
//!
//! This is the pure half; `crate::checkpoint` (which may use files) puts the bytes on a disk.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{ActorCritic, Adam, Config, Head, Learner, actor_critic::Tensor};

/// The version that is written; older ones are read, newer ones are not.
pub const VERSION: u32 = 1;

/// Bytes that a checkpoint has at most.
pub const BYTES_MAX: usize = 64 << 20;

/// The one entry of the safetensors metadata.
const ENTRY: &str = "merit";

/// What `format` says.
const FORMAT: &str = "merit-ppo";

/// Why bytes are not the checkpoint that was asked for, or a learner cannot become one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There are fewer bytes than the header announces, or more.
    #[error(
        "{bytes} bytes are not what the checkpoint's header announces: it was cut off or added to"
    )]
    Truncated {
        /// How many there are.
        bytes: usize,
    },
    /// There are more bytes than a checkpoint may have.
    #[error("{bytes} bytes: a checkpoint has at most {BYTES_MAX}")]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
    /// Something in it was changed after it was written.
    #[error("the checkpoint is corrupted: {reason}")]
    Corrupt {
        /// What does not fit.
        reason: String,
    },
    /// A safetensors file that something else wrote.
    #[error("the file is no checkpoint of merit: its metadata has no entry `{ENTRY}`")]
    Foreign,
    /// A later version of Merit wrote it.
    #[error(
        "the checkpoint has version {found}, newer than {VERSION}: use the merit that wrote it, or train anew"
    )]
    Newer {
        /// Its version.
        found: u32,
    },
    /// It holds other networks.
    #[error("the checkpoint holds {found}, this policy needs {expected}: train one of this shape")]
    Shape {
        /// What it holds.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// It belongs to another policy.
    #[error("the checkpoint is of policy `{found}`, not of `{expected}`")]
    Policy {
        /// What it belongs to.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// A number in it is NaN or infinite.
    #[error("tensor `{tensor}` of the checkpoint holds a number that is not finite")]
    NotFinite {
        /// Where.
        tensor: String,
    },
}

/// A learner with its name and notes.
#[derive(Clone, Debug)]
pub struct Checkpoint<H: Head> {
    /// Which policy it is for, as configuration names it.
    pub policy: String,
    /// What learned.
    pub learner: Learner<H>,
    /// Whatever the writer wants to find again, such as the [`Scene`](super::Scene) it trained in.
    pub notes: BTreeMap<String, String>,
}

/// What a checkpoint must be to be of use to a caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected<H> {
    /// The policy's name.
    pub policy: String,
    /// The distribution over actions.
    pub head: H,
    /// Numbers per observation.
    pub inputs: usize,
    /// How learning goes on; `hidden` is part of the shape.
    pub config: Config,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    format: String,
    version: u32,
    policy: String,
    /// Distribution, inputs, hidden units, outputs.
    shape: String,
    seed: u64,
    updates: u64,
    optimizer_steps: u64,
    notes: BTreeMap<String, String>,
    /// Over this object with this field empty, and the tensors by name.
    sha256: String,
}

/// What is read before anything else.
#[derive(Deserialize)]
struct Preface {
    format: String,
    version: u32,
}

fn shape<H: Head>(network: &ActorCritic<H>) -> String {
    let actor = network.actor();
    format!("{} {}x{}x{}x{}", H::NAME, actor.inputs, actor.hidden, actor.hidden, actor.outputs)
}

/// Names, shapes and bytes of everything in the file, sorted by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors<H: Head>(learner: &Learner<H>) -> Tensors {
    let (network, adam) = (learner.network(), learner.adam());
    let groups = [
        ("", network.parameters()),
        ("adam.first.", adam.first()),
        ("adam.second.", adam.second()),
    ];
    let mut tensors = Tensors::new();
    for (prefix, numbers) in groups {
        for tensor in network.tensors() {
            let bytes = tensor.of(numbers).iter().flat_map(|number| number.to_le_bytes()).collect();
            tensors.insert(format!("{prefix}{}", tensor.name), (tensor.shape, bytes));
        }
    }
    tensors
}

/// The hash, over the metadata without it and the tensors, each behind its name and length.
fn checksum(meta: &Meta, tensors: &[(&str, &[u8])]) -> String {
    debug_assert!(meta.sha256.is_empty() && tensors.is_sorted());
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(&serde_json::to_vec(meta).expect("text and whole numbers"));
    for (name, bytes) in tensors {
        part(name.as_bytes());
        part(bytes);
    }
    let mut text = String::with_capacity(64);
    for byte in hash.finish().as_ref() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

impl<H: Head> Checkpoint<H> {
    /// Returns the bytes of the checkpoint; the same learner and notes give the same bytes.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NotFinite`] or [`TooLarge`](CheckpointError::TooLarge): what could not be read
    /// back is not written.
    pub fn encode(&self) -> Result<Vec<u8>, CheckpointError> {
        let learner = &self.learner;
        let (network, adam) = (learner.network(), learner.adam());
        for numbers in [network.parameters(), adam.first(), adam.second()] {
            finite(&network.tensors(), "", numbers)?;
        }
        let meta = Meta {
            format: FORMAT.to_owned(),
            version: VERSION,
            policy: self.policy.clone(),
            shape: shape(network),
            seed: learner.seed(),
            updates: learner.updates(),
            optimizer_steps: adam.steps(),
            notes: self.notes.clone(),
            sha256: String::new(),
        };
        let bytes = write(meta, &tensors(learner));
        if bytes.len() > BYTES_MAX {
            return Err(CheckpointError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Returns the checkpoint that `bytes` hold.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when they hold none, or not the expected one.
    pub fn decode(bytes: &[u8], expected: &Expected<H>) -> Result<Self, CheckpointError> {
        if bytes.len() > BYTES_MAX {
            return Err(CheckpointError::TooLarge { bytes: bytes.len() });
        }
        let damaged = |error| refusal(bytes.len(), &error);
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let entry = header.metadata().as_ref().and_then(|entries| entries.get(ENTRY));
        let mut meta = read_meta(entry.ok_or(CheckpointError::Foreign)?)?;

        let written = std::mem::take(&mut meta.sha256);
        let mut found = file.tensors();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        let parts: Vec<(&str, &[u8])> =
            found.iter().map(|(name, view)| (name.as_str(), view.data())).collect();
        if checksum(&meta, &parts) != written {
            return Err(corrupt("its SHA-256 is another"));
        }
        if meta.policy != expected.policy {
            let (found, expected) = (meta.policy, expected.policy.clone());
            return Err(CheckpointError::Policy { found, expected });
        }
        let mut network =
            ActorCritic::<H>::blank(expected.head, expected.inputs, expected.config.hidden);
        let needed = shape(&network);
        if meta.shape != needed {
            return Err(CheckpointError::Shape { found: meta.shape, expected: needed });
        }
        let layout = network.tensors();
        if found.len() != 3 * layout.len() {
            return Err(corrupt(&format!("it has {} tensors", found.len())));
        }
        let parameters = read_group(&file, &layout, "")?;
        network.parameters_mut().copy_from_slice(&parameters);
        let first = read_group(&file, &layout, "adam.first.")?;
        let second = read_group(&file, &layout, "adam.second.")?;
        if second.iter().any(|&square| square < 0.0) {
            return Err(corrupt("a mean of squares is negative"));
        }
        let adam = Adam::resume(first, second, meta.optimizer_steps);
        let config = expected.config.clone();
        let learner = Learner::resume(network, adam, config, meta.seed, meta.updates);
        Ok(Self { policy: meta.policy, learner, notes: meta.notes })
    }
}

fn write(mut meta: Meta, tensors: &Tensors) -> Vec<u8> {
    let parts: Vec<(&str, &[u8])> =
        tensors.iter().map(|(name, (_, bytes))| (name.as_str(), bytes.as_slice())).collect();
    meta.sha256 = checksum(&meta, &parts);
    let text = serde_json::to_string(&meta).expect("text and whole numbers");
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.expect("as many bytes as its shape says"))
    });
    let entries = [(ENTRY.to_owned(), text)].into_iter().collect();
    safetensors::serialize(views, Some(entries)).expect("names are unique and lengths small")
}

fn read_meta(text: &str) -> Result<Meta, CheckpointError> {
    let unreadable = |error: serde_json::Error| corrupt(&format!("its metadata: {error}"));
    let preface: Preface = serde_json::from_str(text).map_err(unreadable)?;
    if preface.format != FORMAT {
        return Err(CheckpointError::Foreign);
    }
    if preface.version > VERSION {
        return Err(CheckpointError::Newer { found: preface.version });
    }
    if preface.version == 0 {
        return Err(corrupt("there was no version 0"));
    }
    serde_json::from_str(text).map_err(unreadable)
}

fn read_group(
    file: &SafeTensors<'_>,
    layout: &[Tensor],
    prefix: &str,
) -> Result<Vec<f32>, CheckpointError> {
    let mut numbers = Vec::new();
    for tensor in layout {
        let name = format!("{prefix}{}", tensor.name);
        let view =
            file.tensor(&name).map_err(|_| corrupt(&format!("it has no tensor `{name}`")))?;
        if view.dtype() != Dtype::F32 || view.shape() != tensor.shape {
            let (kind, shape) = (view.dtype(), view.shape());
            return Err(corrupt(&format!("tensor `{name}` is {kind:?} {shape:?}")));
        }
        let (values, _) = view.data().as_chunks::<4>();
        numbers.extend(values.iter().map(|&bytes| f32::from_le_bytes(bytes)));
    }
    finite(layout, prefix, &numbers)?;
    Ok(numbers)
}

fn finite(layout: &[Tensor], prefix: &str, numbers: &[f32]) -> Result<(), CheckpointError> {
    let wrong = |tensor: &&Tensor| tensor.of(numbers).iter().any(|number| !number.is_finite());
    match layout.iter().find(wrong) {
        Some(tensor) => {
            Err(CheckpointError::NotFinite { tensor: format!("{prefix}{}", tensor.name) })
        }
        None => Ok(()),
    }
}

fn corrupt(reason: &str) -> CheckpointError {
    CheckpointError::Corrupt { reason: reason.to_owned() }
}

fn refusal(bytes: usize, error: &SafeTensorError) -> CheckpointError {
    match error {
        SafeTensorError::HeaderTooSmall
        | SafeTensorError::InvalidHeaderLength
        | SafeTensorError::MetadataIncompleteBuffer => CheckpointError::Truncated { bytes },
        other => corrupt(&other.to_string()),
    }
}

#[cfg(test)]
mod tests;
