//! Certificates for tests.

use std::process::Command;

use crate::{Folder, Persistence, Redis, ports};

/// An authority with a server's certificate for 127.0.0.1 and a client's, made by openssl.
#[derive(Debug)]
pub struct Authority {
    folder: Folder,
}

impl Authority {
    /// Makes one.
    ///
    /// # Panics
    ///
    /// When `openssl` is missing (`apt-get install openssl`).
    #[must_use]
    pub fn new() -> Self {
        let authority = Self { folder: Folder::new("authority") };
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=authority -keyout ca.key -out ca.pem",
        );
        for name in ["server", "client"] {
            authority.folder.write(&format!("{name}.ext"), "subjectAltName=IP:127.0.0.1\n");
            authority.openssl(&format!(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
                 -keyout {name}.key -out {name}.csr"
            ));
            authority.openssl(&format!(
                "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                 -extfile {name}.ext -out {name}.pem"
            ));
        }
        authority
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split_ascii_whitespace())
            .current_dir(self.folder.path())
            .output()
            .expect("openssl is there (apt-get install openssl)");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Returns the path of `ca.pem`, or of `.pem` or `.key` of `server` or `client`.
    ///
    /// # Panics
    ///
    /// Never: the folder's name is text.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("it is there, and text").to_owned()
    }

    /// Returns what stands in one of the files.
    ///
    /// # Panics
    ///
    /// When there is no such file.
    #[must_use]
    pub fn pem(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).expect("it is there, and text")
    }

    /// Starts a Redis that also listens for TLS; returns it with the address of that.
    pub async fn redis(&self, asks_clients: &str) -> (Redis, String) {
        let port = ports::free();
        let options = [
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &self.file("server.pem"),
            "--tls-key-file",
            &self.file("server.key"),
            "--tls-ca-cert-file",
            &self.file("ca.pem"),
            "--tls-auth-clients",
            asks_clients,
        ];
        let redis = Redis::start_with(Persistence::SnapshotOnDemand, &options).await;
        (redis, format!("rediss://127.0.0.1:{port}"))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
