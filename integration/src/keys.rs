//! Keys and tokens: the honest ones, and what an attacker would send.

use std::{path::PathBuf, process::Command};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};

use crate::{AUDIENCE, Folder, ISSUER, SECRET, unix_time};

/// `{"alg":"none","typ":"JWT"}` in base64url.
const UNSIGNED_HEADER: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";

/// Returns Unix seconds.
#[must_use]
pub fn now() -> u64 {
    unix_time().as_secs()
}

/// Returns claims that every test configuration accepts, valid for an hour, with `extra` on top.
#[must_use]
pub fn claims(extra: &Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "aud": AUDIENCE, "exp": now() + 3600});
    for (name, value) in extra.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    claims
}

/// Returns a token signed with the shared secret.
///
/// # Panics
///
/// Never with JSON claims.
#[must_use]
pub fn hs256(claims: &Value) -> String {
    signed(Algorithm::HS256, claims, &EncodingKey::from_secret(SECRET.as_bytes()))
}

/// Returns a token of an agent, as it calls the gateway.
#[must_use]
pub fn agent(agent: &str) -> String {
    hs256(&claims(&json!({"agent_id": agent, "sub": format!("owner-of-{agent}")})))
}

/// Returns a token of a rater who may rate as itself.
#[must_use]
pub fn rater(subject: &str) -> String {
    hs256(&claims(&json!({"sub": subject, "scope": "ratings:write"})))
}

/// Returns a token of a collector, who may name any rater. It is valid for a day, so that it outlives
/// clocks that a test sets forward.
#[must_use]
pub fn collector() -> String {
    let scope = "openid ratings:write:any";
    hs256(&claims(&json!({"sub": "collector", "scope": scope, "exp": now() + 86_400})))
}

/// Returns a token signed with `key`.
///
/// # Panics
///
/// When the key is not one for `algorithm`.
#[must_use]
pub fn signed(algorithm: Algorithm, claims: &Value, key: &EncodingKey) -> String {
    encode(&Header::new(algorithm), claims, key).expect("JSON claims can be signed")
}

/// Returns a token with `alg: none` and no signature.
///
/// # Panics
///
/// Never with JSON claims.
#[must_use]
pub fn unsigned(claims: &Value) -> String {
    let token = hs256(claims);
    let payload = token.split('.').nth(1).expect("a token has three parts");
    format!("{UNSIGNED_HEADER}.{payload}.")
}

/// A key pair made by the `openssl` command, as an operator would make it.
#[derive(Debug)]
pub struct KeyPair {
    /// What the pair signs with.
    pub algorithm: Algorithm,
    /// PKCS #8 PEM.
    pub private_pem: String,
    /// SubjectPublicKeyInfo PEM.
    pub public_pem: String,
    /// A file that holds [`KeyPair::public_pem`].
    pub public_key_file: PathBuf,
    _folder: Folder,
}

impl KeyPair {
    /// Makes a pair for RS256, ES256 or EdDSA.
    ///
    /// # Panics
    ///
    /// For another algorithm, or when `openssl` is missing.
    #[must_use]
    pub fn generate(algorithm: Algorithm) -> Self {
        let kind: &[&str] = match algorithm {
            Algorithm::RS256 => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            Algorithm::ES256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Algorithm::EdDSA => &["-algorithm", "ED25519"],
            other => panic!("no test signs with {other:?}"),
        };
        let folder = Folder::new("keys");
        let private = folder.path().join("private.pem");
        let public = folder.path().join("public.pem");
        openssl(Command::new("openssl").arg("genpkey").args(kind).arg("-out").arg(&private));
        let mut export = Command::new("openssl");
        openssl(export.args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(&public));
        let read = |path| std::fs::read_to_string(path).expect("openssl wrote the key");
        Self {
            algorithm,
            private_pem: read(&private),
            public_pem: read(&public),
            public_key_file: public,
            _folder: folder,
        }
    }

    fn encoding_key(&self) -> EncodingKey {
        let pem = self.private_pem.as_bytes();
        let key = match self.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem),
            _ => EncodingKey::from_ed_pem(pem),
        };
        key.expect("openssl writes PEM")
    }

    /// Returns a token signed with the private key.
    ///
    /// # Panics
    ///
    /// Never: the key was made for the algorithm.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        signed(self.algorithm, claims, &self.encoding_key())
    }

    /// Returns a token signed with the private key, which it names `kid`.
    ///
    /// # Panics
    ///
    /// Never: the key was made for the algorithm.
    #[must_use]
    pub fn sign_as(&self, kid: &str, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(kid.to_owned());
        encode(&header, claims, &self.encoding_key()).expect("JSON claims can be signed")
    }

    /// Returns the public key as a JSON Web Key named `kid`.
    ///
    /// # Panics
    ///
    /// Never: the key was made for the algorithm.
    #[must_use]
    pub fn jwk(&self, kid: &str) -> Value {
        let jwk = Jwk::from_encoding_key(&self.encoding_key(), self.algorithm);
        let mut jwk = serde_json::to_value(jwk.expect("a key has a public part")).expect("JSON");
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// Returns a token that takes the published public key for an HMAC secret: accepted by
    /// whoever reads the algorithm from the token.
    #[must_use]
    pub fn confused(&self, claims: &Value) -> String {
        signed(Algorithm::HS256, claims, &EncodingKey::from_secret(self.public_pem.as_bytes()))
    }
}

pub(crate) fn openssl(command: &mut Command) {
    let output = command.output().expect("the openssl command is there: apt-get install openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
