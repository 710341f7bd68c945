//! PKCS#11 tokens for tests: a real `SoftHSM` in a folder of its own, removed with the test.
//!
//! Its module is where Debian's `softhsm2` puts it, or where `GUAN_TEST_SOFTHSM` says; without one a test that needs it
//! fails and says so.

#![expect(
    clippy::disallowed_methods,
    reason = "a test's tool, not a child of the server"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A token `guan` with the AES keys `kek` (id 01) and `other` (id 02), and its user's PIN.
#[derive(Debug)]
pub struct SoftHsm {
    home: TempDir,
    module: PathBuf,
}

/// The user's PIN.
pub const PIN: &str = "hunter2-pin";

impl SoftHsm {
    /// Makes one.
    ///
    /// # Panics
    /// When the tools aren't there or fail.
    #[must_use]
    pub fn make() -> Self {
        let module = std::env::var_os("GUAN_TEST_SOFTHSM").map_or_else(
            || {
                let places = ["/usr/lib/softhsm", "/usr/lib64/softhsm"];
                let files = places.map(|place| Path::new(place).join("libsofthsm2.so"));
                let found = files.into_iter().find(|file| file.exists());
                found.expect(
                    "no SoftHSM: install softhsm2, or let GUAN_TEST_SOFTHSM name its module",
                )
            },
            PathBuf::from,
        );
        let home = TempDir::new().expect("a folder for the token");
        let tokens = home.path().join("tokens");
        std::fs::create_dir(&tokens).expect("a folder for the token");
        let config = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        std::fs::write(home.path().join("softhsm2.conf"), config).expect("its config");
        let token = Self { home, module };
        let init = ["--init-token", "--free", "--label", "guan"];
        token.tool(
            "softhsm2-util",
            &[&init[..], &["--so-pin", "so-pin", "--pin", PIN]].concat(),
        );
        for (label, id) in [("kek", "01"), ("other", "02")] {
            token.key(label, id);
        }
        token
    }

    /// The module's path.
    #[must_use]
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// What must be in the environment of whoever loads the module.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home.path().join("softhsm2.conf")
    }

    fn key(&self, label: &str, id: &str) {
        let module = self.module.to_string_lossy();
        self.tool(
            "pkcs11-tool",
            &[
                "--module",
                &module,
                "--token-label",
                "guan",
                "--login",
                "--pin",
                PIN,
                "--keygen",
                "--key-type",
                "AES:32",
                "--label",
                label,
                "--id",
                id,
                "--sensitive",
            ],
        );
    }

    fn tool(&self, program: &str, arguments: &[&str]) {
        let done = Command::new(program)
            .args(arguments)
            .env("SOFTHSM2_CONF", self.config())
            .stdin(Stdio::null())
            .output();
        let done = done.unwrap_or_else(|e| panic!("{program} (of softhsm2 and opensc): {e}"));
        assert!(
            done.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
