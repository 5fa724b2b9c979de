//! Keys that signatures are checked with: which algorithms each may serve, decided when it is read.
//!
//! 1. A key is usable when its kind, size and curve fit an algorithm that is configured, and, if it
//!    names one itself, that one. A token's header only picks among what was decided here.
//! 2. RSA has 2048 to 8192 bits and an odd exponent above 1; an HMAC secret is as long as the hash
//!    (RFC 7518 sections 3.2, 3.3, 3.5); a point lies on the curve of its algorithm.
//! 3. A key that is taken out of force stays so: what was verified with it is forgotten.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, Jwk},
};

use super::super::backend;

/// The least and most bits of an RSA modulus; the backend checks no signature outside of these.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The longest RSA exponent, in bytes: longer ones serve only to make a verifier slow.
const RSA_EXPONENT_MAX: usize = 8;

/// Why a key serves no signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnusableKey {
    /// `kty` or `crv` is of a kind that no algorithm here uses.
    #[error("its type or curve is not supported")]
    Kind,
    /// A member is missing, of the wrong type or not base64url.
    #[error("its member `{member}` is missing or malformed")]
    Malformed {
        /// The first such member.
        member: &'static str,
    },
    /// `use` is not `sig`, or `key_ops` does not hold `verify`.
    #[error("its `use` or `key_ops` does not allow verifying")]
    Purpose,
    /// It holds a private part: whoever could read the set can sign.
    #[error("it holds a private key; publish the public part alone, and replace the pair")]
    Private,
    /// None of the configured algorithms fits, or its own `alg` is not among them.
    #[error("no configured algorithm fits it")]
    Algorithm,
    /// An RSA modulus outside of 2048 to 8192 bits.
    #[error("its modulus has {bits} bits, must have 2048 to 8192")]
    RsaSize {
        /// Its size.
        bits: usize,
    },
    /// An RSA exponent with which signatures prove nothing.
    #[error("its exponent must be odd, above 1 and at most 8 bytes long")]
    RsaExponent,
    /// An HMAC secret shorter than the hash (RFC 7518 section 3.2).
    #[error("its secret has {length} bytes, must be at least {needed} long")]
    Short {
        /// Its length in bytes.
        length: usize,
        /// The length of the hash.
        needed: usize,
    },
    /// The point is not on the curve.
    #[error("its point is not on the curve")]
    Point,
}

/// The public part of a key pair, or a shared secret.
pub(super) enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point in uncompressed form: 65 bytes on P-256, 97 on P-384.
    Ec(Vec<u8>),
    Ed25519(Vec<u8>),
    Hmac(Vec<u8>),
}

/// A key in force, or one that was.
pub(super) struct Key {
    id: Option<Box<str>>,
    algorithms: Box<[Algorithm]>,
    decoding: DecodingKey,
    in_force: AtomicBool,
}

impl Key {
    /// Returns the key, when one of the `configured` algorithms fits it and its own name for one.
    pub(super) fn new(
        id: Option<Box<str>>,
        material: &Material,
        configured: &[Algorithm],
        named: Option<Algorithm>,
    ) -> Result<Self, UnusableKey> {
        let decoding = check(material)?;
        let wanted = |algorithm: &&Algorithm| {
            named.is_none_or(|named| named == **algorithm) && fits(material, **algorithm)
        };
        let wanted: Vec<Algorithm> = configured.iter().filter(wanted).copied().collect();
        let algorithms: Vec<Algorithm> = match material {
            Material::Hmac(secret) => {
                let long = |algorithm: &Algorithm| secret.len() >= hash_bytes(*algorithm);
                let algorithms: Vec<Algorithm> = wanted.iter().copied().filter(long).collect();
                if let (true, Some(least)) =
                    (algorithms.is_empty(), wanted.iter().map(|one| hash_bytes(*one)).min())
                {
                    return Err(UnusableKey::Short { length: secret.len(), needed: least });
                }
                algorithms
            }
            _ => wanted,
        };
        if algorithms.is_empty() {
            return Err(UnusableKey::Algorithm);
        }
        let algorithms = algorithms.into();
        Ok(Self { id, algorithms, decoding, in_force: AtomicBool::new(true) })
    }

    /// Returns the key in a PEM file (SubjectPublicKeyInfo) for `algorithms` of one family.
    pub(super) fn from_pem(pem: &[u8], algorithms: &[Algorithm]) -> Result<Self, PemError> {
        let first = *algorithms.first().ok_or(UnusableKey::Algorithm)?;
        let decoding = match first.family() {
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem),
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem),
            AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem),
            AlgorithmFamily::Hmac => return Err(UnusableKey::Kind.into()),
        }?;
        let jwk = Jwk::from_decoding_key(&decoding, None)?;
        let key = Self::new(None, &material(&jwk.algorithm)?, algorithms, None)?;
        match key.algorithms.len() == algorithms.len() {
            true => Ok(key),
            false => Err(UnusableKey::Algorithm.into()),
        }
    }

    pub(super) fn serves(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    pub(super) fn in_force(&self) -> bool {
        self.in_force.load(Ordering::Acquire)
    }

    fn retire(&self) {
        self.in_force.store(false, Ordering::Release);
    }

    /// Returns true when `signature` (base64url) was made of `message` with this key.
    pub(super) fn verifies(&self, message: &[u8], signature: &str, algorithm: Algorithm) -> bool {
        self.serves(algorithm)
            && jsonwebtoken::crypto::verify(signature, message, &self.decoding, algorithm)
                .unwrap_or(false)
    }

    fn is_same(&self, other: &Self) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let same = match (self.decoding.kind(), other.decoding.kind()) {
            (SecretOrDer(one), SecretOrDer(other)) => one == other,
            (RsaModulusExponent { n: n1, e: e1 }, RsaModulusExponent { n: n2, e: e2 }) => {
                n1 == n2 && e1 == e2
            }
            _ => false,
        };
        same && self.id == other.id
            && self.algorithms == other.algorithms
            && self.decoding.family() == other.decoding.family()
    }
}

/// Why a PEM file holds no usable key.
#[derive(Debug, thiserror::Error)]
pub(super) enum PemError {
    #[error(transparent)]
    Unreadable(#[from] jsonwebtoken::errors::Error),
    #[error(transparent)]
    Unusable(#[from] UnusableKey),
}

fn check(material: &Material) -> Result<DecodingKey, UnusableKey> {
    match material {
        Material::Rsa { n, e } => {
            let bits = bits(n);
            if !RSA_BITS.contains(&bits) || n.last().is_none_or(|last| last % 2 == 0) {
                return Err(UnusableKey::RsaSize { bits });
            }
            let short = e.len() <= RSA_EXPONENT_MAX && e.first().is_some_and(|first| *first != 0);
            if !short || self::bits(e) < 2 || e.last().is_none_or(|last| last % 2 == 0) {
                return Err(UnusableKey::RsaExponent);
            }
            Ok(DecodingKey::from_rsa_raw_components(n, e))
        }
        Material::Ec(point) if backend::is_ec_point(point) => Ok(DecodingKey::from_ec_der(point)),
        Material::Ed25519(key) if backend::is_ed25519_key(key) => Ok(DecodingKey::from_ed_der(key)),
        Material::Ec(_) | Material::Ed25519(_) => Err(UnusableKey::Point),
        Material::Hmac(secret) => Ok(DecodingKey::from_secret(secret)),
    }
}

fn fits(material: &Material, algorithm: Algorithm) -> bool {
    match material {
        Material::Rsa { .. } => algorithm.family() == AlgorithmFamily::Rsa,
        Material::Ec(point) if point.len() == 65 => algorithm == Algorithm::ES256,
        Material::Ec(_) => algorithm == Algorithm::ES384,
        Material::Ed25519(_) => algorithm == Algorithm::EdDSA,
        Material::Hmac(_) => algorithm.family() == AlgorithmFamily::Hmac,
    }
}

/// Returns the length of the hash, which a secret must not be shorter than.
pub(super) fn hash_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 32,
    }
}

/// Returns the size of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let significant = number.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &number[at..]);
    significant.first().map_or(0, |first| significant.len() * 8 - first.leading_zeros() as usize)
}

/// Reads what jsonwebtoken made of a PEM file.
fn material(parameters: &AlgorithmParameters) -> Result<Material, UnusableKey> {
    let bytes = |member, text: &str| decode(text).ok_or(UnusableKey::Malformed { member });
    match parameters {
        AlgorithmParameters::RSA(rsa) => {
            Ok(Material::Rsa { n: bytes("n", &rsa.n)?, e: bytes("e", &rsa.e)? })
        }
        AlgorithmParameters::EllipticCurve(ec) => {
            Ok(Material::Ec(point(&bytes("x", &ec.x)?, &bytes("y", &ec.y)?)))
        }
        AlgorithmParameters::OctetKeyPair(pair) => Ok(Material::Ed25519(bytes("x", &pair.x)?)),
        _ => Err(UnusableKey::Kind),
    }
}

/// Returns the point in uncompressed form.
pub(super) fn point(x: &[u8], y: &[u8]) -> Vec<u8> {
    [&[4], x, y].concat()
}

/// Returns what `text` means in base64url without padding, read strictly.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// The keys that are in force together.
#[derive(Default)]
pub(super) struct KeySet {
    keys: Vec<Arc<Key>>,
    by_id: HashMap<Box<str>, Arc<Key>>,
    /// One configured key serves every token, whatever key id it names.
    alone: bool,
}

/// Why no key of a set was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// No key has this id.
    Unknown,
    /// The key with this id, or every key, is for other algorithms.
    Algorithm,
    /// The token names no key, and several could be meant.
    Ambiguous,
}

impl KeySet {
    /// Returns a set of one configured key, which serves tokens of every key id.
    pub(super) fn alone(key: Key) -> Self {
        Self { keys: vec![Arc::new(key)], by_id: HashMap::new(), alone: true }
    }

    /// Returns a set of published keys. A key that is in force in `before` stays the same, so that
    /// what was verified with it stays remembered.
    pub(super) fn published(keys: Vec<Key>, before: Option<&Self>) -> Self {
        let known = |key: &Key| {
            let old = before.into_iter().flat_map(|set| &set.keys);
            old.into_iter().find(|old| old.in_force() && old.is_same(key)).cloned()
        };
        let keys: Vec<Arc<Key>> =
            keys.into_iter().map(|key| known(&key).unwrap_or_else(|| Arc::new(key))).collect();
        let named = keys.iter().filter_map(|key| Some((key.id.clone()?, Arc::clone(key))));
        let by_id = named.collect();
        Self { keys, by_id, alone: false }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Takes every key out of force that is not in `next`.
    pub(super) fn retire_for(&self, next: Option<&Self>) {
        for key in &self.keys {
            let stays =
                next.is_some_and(|next| next.keys.iter().any(|kept| Arc::ptr_eq(kept, key)));
            if !stays {
                key.retire();
            }
        }
    }

    /// Returns the key for a token with this header.
    pub(super) fn pick(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Arc<Key>, NoKey> {
        let serving = |key: &&Arc<Key>| key.serves(algorithm);
        if let (Some(id), false) = (id, self.alone) {
            let key = self.by_id.get(id).ok_or(NoKey::Unknown)?;
            return Some(key).filter(serving).ok_or(NoKey::Algorithm);
        }
        let mut candidates = self.keys.iter().filter(serving);
        match (candidates.next(), candidates.next()) {
            (Some(key), None) => Ok(key),
            (Some(_), Some(_)) => Err(NoKey::Ambiguous),
            (None, _) => Err(NoKey::Algorithm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_RSA: &[Algorithm] = &[
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ];

    fn rsa(bits: usize, e: &[u8]) -> Result<Key, UnusableKey> {
        let mut n = vec![0xff; bits.div_ceil(8)];
        n[0] >>= n.len() * 8 - bits;
        Key::new(None, &Material::Rsa { n, e: e.to_vec() }, ALL_RSA, None)
    }

    fn hmac(length: usize, algorithms: &[Algorithm]) -> Result<Key, UnusableKey> {
        Key::new(None, &Material::Hmac(vec![7; length]), algorithms, None)
    }

    #[test]
    fn rsa_keys_that_are_small_huge_or_even_are_unusable() {
        assert!(rsa(2048, &[1, 0, 1]).is_ok());
        assert!(rsa(8192, &[3]).is_ok());
        for bits in [512, 1024, 2047, 8193] {
            assert_eq!(rsa(bits, &[1, 0, 1]).err(), Some(UnusableKey::RsaSize { bits }));
        }
        let even = Material::Rsa { n: vec![0xfe; 256], e: vec![1, 0, 1] };
        assert!(Key::new(None, &even, ALL_RSA, None).is_err());
        // One, even, zero, none, padded with a zero, longer than any honest one.
        for e in [&[1][..], &[2], &[0], &[], &[0, 3], &[3; 9]] {
            assert_eq!(rsa(2048, e).err(), Some(UnusableKey::RsaExponent), "{e:?}");
        }
    }

    #[test]
    fn a_secret_serves_the_hashes_that_are_no_longer_than_it() {
        let all = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        assert_eq!(&*hmac(63, &all).unwrap().algorithms, &all[..2]);
        assert_eq!(hmac(31, &all).err(), Some(UnusableKey::Short { length: 31, needed: 32 }));
        let error = hmac(63, &all[2..]).err();
        assert_eq!(error, Some(UnusableKey::Short { length: 63, needed: 64 }));
    }

    #[test]
    fn a_key_serves_no_algorithm_of_another_family_or_that_it_does_not_name() {
        assert_eq!(hmac(64, ALL_RSA).err(), Some(UnusableKey::Algorithm));
        let material = Material::Rsa { n: vec![0xff; 256], e: vec![1, 0, 1] };
        let key = Key::new(None, &material, ALL_RSA, Some(Algorithm::PS256)).unwrap();
        assert!(key.serves(Algorithm::PS256) && !key.serves(Algorithm::RS256));
        let other = Key::new(None, &material, &[Algorithm::RS256], Some(Algorithm::PS256));
        assert_eq!(other.err(), Some(UnusableKey::Algorithm));
    }

    #[test]
    fn a_point_off_the_curve_is_unusable() {
        let algorithms = [Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];
        for point in [vec![4; 65], vec![4; 97], vec![4; 64], vec![]] {
            let key = Key::new(None, &Material::Ec(point), &algorithms, None);
            assert_eq!(key.err(), Some(UnusableKey::Point));
        }
        let short = Key::new(None, &Material::Ed25519(vec![4; 31]), &algorithms, None);
        assert_eq!(short.err(), Some(UnusableKey::Point));
    }

    #[test]
    fn a_token_without_a_key_id_needs_exactly_one_key_that_fits() {
        let key = |id: &str, length| {
            let all = [Algorithm::HS256, Algorithm::HS512];
            Key::new(Some(id.into()), &Material::Hmac(vec![7; length]), &all, None).unwrap()
        };
        let set = KeySet::published(vec![key("a", 64), key("b", 32)], None);
        assert_eq!(set.pick(None, Algorithm::HS256).err(), Some(NoKey::Ambiguous));
        assert_eq!(set.pick(None, Algorithm::HS512).unwrap().id.as_deref(), Some("a"));
        assert_eq!(set.pick(None, Algorithm::ES256).err(), Some(NoKey::Algorithm));
        assert_eq!(set.pick(Some("b"), Algorithm::HS512).err(), Some(NoKey::Algorithm));
        assert_eq!(set.pick(Some("c"), Algorithm::HS256).err(), Some(NoKey::Unknown));
    }

    #[test]
    fn a_key_that_stays_stays_in_force_and_one_that_left_never_comes_back() {
        let key = |id: &str, fill| {
            let material = Material::Hmac(vec![fill; 32]);
            Key::new(Some(id.into()), &material, &[Algorithm::HS256], None).unwrap()
        };
        let first = KeySet::published(vec![key("a", 1), key("b", 2)], None);
        let second = KeySet::published(vec![key("a", 1), key("b", 3)], Some(&first));
        first.retire_for(Some(&second));
        assert!(Arc::ptr_eq(&first.keys[0], &second.keys[0]));
        assert!(first.keys[0].in_force() && !first.keys[1].in_force());
        assert!(second.keys[1].in_force());
        second.retire_for(None);
        let third = KeySet::published(vec![key("a", 1)], Some(&second));
        assert!(third.keys[0].in_force() && !first.keys[0].in_force());
    }
}
