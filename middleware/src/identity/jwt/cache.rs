//! Verified tokens, remembered by their text: as fast to look up as to hash once and compare once.
//!
//! 1. Only verified tokens are put in, so what is in here was signed by an issuer: nobody fills it
//!    with what he made up, and no lookup takes longer because of tokens that are not in it.
//! 2. The text itself is kept and compared. A digest in its place would cost more than the rest of
//!    the lookup (SHA-256 of 250 bytes is some 200 ns); the price is memory, bounded by
//!    [`Bounds::bytes`] as well as by [`Bounds::tokens`].
//! 3. What is hashed is the token's end, its signature: no two tokens that verify have the same. The
//!    hash is foldhash, keyed at random per process; two equal ones make a miss, never a wrong answer.
//! 4. A token is forgotten the moment its key is out of force, and when it has expired.

use std::{
    hash::{BuildHasher, BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::{Token, keys::Key};

/// Locks that the tokens are spread over. With the 64 of them two requests seldom want the same.
const SHARDS: usize = 64;

/// The least tokens of a shard: with fewer, two that are in use would drive each other out.
const SHARD_LEAST: usize = 8;

/// How much of a token's end is hashed, in bytes: more than the signature of HS256 (43 characters).
const HASHED: usize = 48;

/// What an entry costs beside the texts, in bytes: map slot, list node, parsed token.
const ENTRY_BYTES: usize = 320;

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Tokens at most; 0 remembers none.
    pub(super) tokens: usize,
    /// Bytes at most, [`ENTRY_BYTES`] of each token among them.
    pub(super) bytes: usize,
}

struct Entry {
    text: Box<str>,
    token: Arc<Token>,
    key: Arc<Key>,
}

impl Entry {
    /// What was parsed out of the token is shorter than its text.
    fn bytes(&self) -> usize {
        2 * self.text.len() + ENTRY_BYTES
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Shard {
    entries: LruCache<u64, Entry, BuildHasherDefault<Hashed>>,
    bytes: usize,
}

/// What is known of a token.
pub(super) enum Remembered<T> {
    /// It is valid still; this is what was asked of it.
    Valid(T),
    /// It was valid, and has expired.
    Expired,
    /// Nothing.
    Unknown,
}

pub(super) struct Cache {
    hasher: foldhash::quality::RandomState,
    shards: Box<[Mutex<Shard>]>,
    each: Bounds,
}

impl Cache {
    pub(super) fn new(bounds: Bounds) -> Self {
        let shards = match bounds.tokens {
            0 => 0,
            some => (some / SHARD_LEAST).clamp(1, SHARDS),
        };
        let each =
            Bounds { tokens: bounds.tokens / shards.max(1), bytes: bounds.bytes / shards.max(1) };
        let shard = |_| {
            let entries = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
            Mutex::new(Shard { entries, bytes: 0 })
        };
        Self {
            hasher: foldhash::quality::RandomState::default(),
            shards: (0..shards).map(shard).collect(),
            each,
        }
    }

    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard>> {
        // Bits from the middle: the map takes its places from the lowest and its tags from the
        // highest. A product in place of a remainder, which would cost as much as the lock.
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of shards")]
        let index = ((((hash >> 16) & 0xffff_ffff) * self.shards.len() as u64) >> 32) as usize;
        let shard = self.shards.get(index)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn hash(&self, text: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(text.last_chunk::<HASHED>().map_or(text, |end| end));
        hasher.finish()
    }

    /// Returns what `read` makes of the token with this text, if it is known and `now` (Unix
    /// seconds, leeway taken off) is before its expiry.
    pub(super) fn get<T>(
        &self,
        text: &[u8],
        now: u64,
        read: impl FnOnce(&Arc<Token>) -> T,
    ) -> Remembered<T> {
        let hash = self.hash(text);
        let Some(mut shard) = self.shard(hash) else { return Remembered::Unknown };
        let Some(entry) = shard.entries.get(&hash) else { return Remembered::Unknown };
        if entry.text.as_bytes() != text {
            return Remembered::Unknown;
        }
        if entry.key.in_force() {
            if now < entry.token.expires_at {
                return Remembered::Valid(read(&entry.token));
            }
            shard.forget(hash);
            return Remembered::Expired;
        }
        shard.forget(hash);
        Remembered::Unknown
    }

    pub(super) fn put(&self, text: &str, token: &Arc<Token>, key: &Arc<Key>) {
        let entry = Entry { text: text.into(), token: Arc::clone(token), key: Arc::clone(key) };
        if entry.bytes() > self.each.bytes {
            return;
        }
        let hash = self.hash(text.as_bytes());
        let Some(mut shard) = self.shard(hash) else { return };
        shard.forget(hash);
        shard.bytes += entry.bytes();
        shard.entries.put(hash, entry);
        while shard.bytes > self.each.bytes || shard.entries.len() > self.each.tokens {
            let (_, oldest) = shard.entries.pop_lru().expect("what has bytes has entries");
            shard.bytes -= oldest.bytes();
        }
    }
}

impl Shard {
    fn forget(&mut self, hash: u64) {
        if let Some(entry) = self.entries.pop(&hash) {
            self.bytes -= entry.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm;

    use super::{
        super::keys::{KeySet, Material},
        *,
    };

    fn key() -> (KeySet, Arc<Key>) {
        let material = Material::Hmac(vec![7; 32]);
        let key = Key::new(Some("a".into()), &material, &[Algorithm::HS256], None).unwrap();
        let set = KeySet::published(vec![key], None);
        let key = Arc::clone(set.pick(Some("a"), Algorithm::HS256).unwrap());
        (set, key)
    }

    fn token(expires_at: u64) -> Arc<Token> {
        let agent = Ok("a".parse().unwrap());
        Arc::new(Token { agent, rater: None, subject: None, scope: Box::default(), expires_at })
    }

    fn known(cache: &Cache, text: &str, now: u64) -> Option<u64> {
        match cache.get(text.as_bytes(), now, |token| token.expires_at) {
            Remembered::Valid(expires_at) => Some(expires_at),
            _ => None,
        }
    }

    fn held(cache: &Cache) -> (usize, usize) {
        let shards = cache.shards.iter().map(|shard| shard.lock().unwrap());
        shards.fold((0, 0), |(count, bytes), shard| {
            let actual: usize = shard.entries.iter().map(|(_, entry)| entry.bytes()).sum();
            assert_eq!(actual, shard.bytes);
            (count + shard.entries.len(), bytes + actual)
        })
    }

    #[test]
    fn no_more_tokens_or_bytes_are_held_than_the_bounds_say() {
        for tokens in [0, 1, 63, 64, 1000] {
            let bounds = Bounds { tokens, bytes: 1 << 20 };
            let (cache, (_set, key)) = (Cache::new(bounds), key());
            for n in 0..3000 {
                cache.put(&format!("token {n}"), &token(9), &key);
            }
            let (count, bytes) = held(&cache);
            assert!(count <= tokens && bytes <= 1 << 20, "{tokens}: {count}, {bytes}");
            assert_eq!(known(&cache, "token 2999", 0).is_some(), tokens > 0);
        }
        let (cache, (_set, key)) = (Cache::new(Bounds { tokens: 10_000, bytes: 1 << 20 }), key());
        for n in 0..1000 {
            cache.put(&format!("{}{n}", "x".repeat(4000)), &token(9), &key);
        }
        let (count, bytes) = held(&cache);
        assert!(bytes <= 1 << 20 && count >= 64, "{count}, {bytes}");
        cache.put(&"y".repeat(1 << 20), &token(9), &key);
        assert_eq!(held(&cache), (count, bytes));
    }

    #[test]
    fn a_token_is_known_until_it_expires_or_its_key_goes_out_of_force() {
        let (cache, (set, key)) = (Cache::new(Bounds { tokens: 10, bytes: 1 << 20 }), key());
        cache.put("one", &token(100), &key);
        cache.put("two", &token(100), &key);
        assert_eq!(known(&cache, "one", 99), Some(100));
        assert!(matches!(cache.get(b"one", 100, |_| ()), Remembered::Expired));
        assert!(matches!(cache.get(b"one", 99, |_| ()), Remembered::Unknown));
        assert_eq!(known(&cache, "two", 99), Some(100));
        set.retire_for(None);
        assert!(matches!(cache.get(b"two", 99, |_| ()), Remembered::Unknown));
        assert_eq!(held(&cache), (0, 0));
    }
}
