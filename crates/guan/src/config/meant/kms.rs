//! The `[kms]` part of the conversion: who wraps the store's data key.
//!
//! Its own credentials come by `file:` or `env:` reference: they open what is sealed, so they can't be sealed.
//! Called by `meant::convert`, and by commands that open the store while no server runs.

use std::path::Path;

use control::seal::client::Endpoint;
use control::seal::{Kms, Secret, aliyun, aws, pkcs11, vault};

use super::super::{nearest, reference, written};
use crate::token::Reach;

/// The provider that `[kms]` names, and the variables that must be in the gateway's environment.
///
/// `reach` says how a PKCS#11 token is reached from this process.
///
/// # Errors
/// The key that is wrong, and what is wrong with it.
pub(crate) fn provider(
    written: &written::Kms,
    data: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    reach: Reach,
) -> Result<(Kms, Vec<String>), (&'static str, String)> {
    let mut reader = Reader {
        data,
        env,
        variables: Vec::new(),
    };
    let word = written.provider.as_deref().unwrap_or("file");
    let known: &[&str] = match word {
        "file" => &[],
        "vault" => &["address", "mount", "key", "token", "ca", "namespace"],
        "aws" => &[
            "key_id",
            "region",
            "endpoint",
            "ca",
            "access_key_id",
            "access_key_secret",
            "session_token",
        ],
        "aliyun" => &[
            "key_id",
            "region",
            "endpoint",
            "ca",
            "access_key_id",
            "access_key_secret",
        ],
        "pkcs11" => &[
            "module",
            "token_label",
            "token_serial",
            "key",
            "key_id",
            "pin",
        ],
        other => {
            let hint = match nearest(other, PROVIDERS.iter().copied()) {
                Some(near) => format!("; did you mean \"{near}\"?"),
                None => String::new(),
            };
            let list: Vec<String> = PROVIDERS.iter().map(|p| format!("\"{p}\"")).collect();
            return Err((
                "provider",
                format!("must be one of {}{hint}", list.join(", ")),
            ));
        }
    };
    for (key, value) in fields(written) {
        if value.is_some() && !known.contains(&key) {
            return Err((
                key,
                format!("is nothing that provider \"{word}\" knows; leave it out"),
            ));
        }
    }
    if word != "pkcs11" {
        let foreign = |key| {
            Err((
                key,
                format!("is nothing that provider \"{word}\" knows; leave it out"),
            ))
        };
        if written.network.is_some() {
            return foreign("network");
        }
        if !written.module_environment.is_empty() {
            return foreign("module_environment");
        }
    }
    let kms = match word {
        "vault" => Kms::Vault(reader.vault(written)?),
        "aws" => Kms::Aws(reader.aws(written)?),
        "aliyun" => Kms::Aliyun(reader.aliyun(written)?),
        "pkcs11" => Kms::Pkcs11(reader.pkcs11(written, reach)?),
        _ => Kms::in_folder(data),
    };
    Ok((kms, reader.variables))
}

type Fault = (&'static str, String);

struct Reader<'a> {
    data: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
    variables: Vec<String>,
}

impl Reader<'_> {
    fn vault(&mut self, written: &written::Kms) -> Result<vault::Settings, Fault> {
        let address = needed("address", written.address.as_deref())?;
        let mount = written.mount.as_deref().unwrap_or("transit");
        let mount = mount.trim_matches('/');
        if !mount.split('/').all(is_segment) {
            return Err((
                "mount",
                "must be a path such as \"transit\" or \"teams/transit\"".to_owned(),
            ));
        }
        let key = needed("key", written.key.as_deref())?;
        if !is_segment(key) {
            return Err((
                "key",
                "must be the name of a Transit key: letters, digits, \".\", \"_\" and \"-\""
                    .to_owned(),
            ));
        }
        let namespace = written.namespace.as_deref();
        if namespace.is_some_and(|n| !n.trim_matches('/').split('/').all(is_segment)) {
            return Err((
                "namespace",
                "must be a path such as \"teams/llm\"".to_owned(),
            ));
        }
        Ok(vault::Settings {
            endpoint: self.endpoint("address", address, written)?,
            mount: mount.to_owned(),
            key: key.to_owned(),
            token: self.secret("token", written.token.as_deref(), "VAULT_TOKEN")?,
            namespace: namespace.map(str::to_owned),
        })
    }

    fn aws(&mut self, written: &written::Kms) -> Result<aws::Settings, Fault> {
        let region = region(written)?;
        let endpoint = written
            .endpoint
            .clone()
            .unwrap_or_else(|| aws::address(region));
        let session_token = match written.session_token.as_deref() {
            None if (self.env)("AWS_SESSION_TOKEN").is_none_or(|t| t.trim().is_empty()) => None,
            named => Some(self.secret("session_token", named, "AWS_SESSION_TOKEN")?),
        };
        Ok(aws::Settings {
            endpoint: self.endpoint("endpoint", &endpoint, written)?,
            region: region.to_owned(),
            key_id: key_id(written)?,
            access_key_id: self.secret(
                "access_key_id",
                written.access_key_id.as_deref(),
                "AWS_ACCESS_KEY_ID",
            )?,
            access_key_secret: self.secret(
                "access_key_secret",
                written.access_key_secret.as_deref(),
                "AWS_SECRET_ACCESS_KEY",
            )?,
            session_token,
        })
    }

    fn aliyun(&mut self, written: &written::Kms) -> Result<aliyun::Settings, Fault> {
        let endpoint = match &written.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => aliyun::address(region(written)?),
        };
        Ok(aliyun::Settings {
            endpoint: self.endpoint("endpoint", &endpoint, written)?,
            key_id: key_id(written)?,
            access_key_id: self.secret(
                "access_key_id",
                written.access_key_id.as_deref(),
                "ALIBABA_CLOUD_ACCESS_KEY_ID",
            )?,
            access_key_secret: self.secret(
                "access_key_secret",
                written.access_key_secret.as_deref(),
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
            )?,
        })
    }

    fn pkcs11(&mut self, written: &written::Kms, reach: Reach) -> Result<pkcs11::Settings, Fault> {
        let module = Path::new(needed("module", written.module.as_deref())?);
        if !module.is_absolute() {
            return Err((
                "module",
                "must be the module's whole path, such as \"/usr/lib/softhsm/libsofthsm2.so\""
                    .to_owned(),
            ));
        }
        let token = match (&written.token_label, &written.token_serial) {
            (Some(label), None) => pkcs11::Named::Label(name("token_label", label)?),
            (None, Some(serial)) => pkcs11::Named::Number(name("token_serial", serial)?),
            (Some(_), Some(_)) => {
                return Err((
                    "token_serial",
                    "is one too many beside token_label; leave one out".to_owned(),
                ));
            }
            (None, None) => {
                return Err((
                    "token_label",
                    "is missing; name the token by it, or by token_serial".to_owned(),
                ));
            }
        };
        let key = match (&written.key, &written.key_id) {
            (Some(label), None) => pkcs11::Named::Label(name("key", label)?),
            (None, Some(id)) if is_hex(id) => pkcs11::Named::Number(id.to_ascii_lowercase()),
            (None, Some(_)) => {
                return Err((
                    "key_id",
                    "must be the key's id in hex, such as \"01a2\"".to_owned(),
                ));
            }
            (Some(_), Some(_)) => {
                return Err((
                    "key_id",
                    "is one too many beside key; leave one out".to_owned(),
                ));
            }
            (None, None) => {
                return Err((
                    "key",
                    "is missing; name the key by its label, or by key_id".to_owned(),
                ));
            }
        };
        let pin = needed("pin", written.pin.as_deref())?;
        for variable in &written.module_environment {
            let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if variable.is_empty() || !variable.bytes().all(good) || variable.starts_with("LD_") {
                return Err((
                    "module_environment",
                    "must be names of variables, such as \"SOFTHSM2_CONF\", none of them LD_…"
                        .to_owned(),
                ));
            }
        }
        Ok(pkcs11::Settings {
            module: module.to_owned(),
            token,
            key,
            pin: self.secret("pin", Some(pin), "")?,
            network: written.network.unwrap_or(false),
            environment: written.module_environment.clone(),
            courier: reach.courier(self.data),
        })
    }

    fn endpoint(
        &self,
        key: &'static str,
        url: &str,
        written: &written::Kms,
    ) -> Result<Endpoint, Fault> {
        let ca = written.ca.as_ref().map(|ca| self.data.join(ca));
        if let Some(missing) = ca.as_ref().filter(|ca| !ca.is_file()) {
            return Err((
                "ca",
                format!("names {}, which isn't there", missing.display()),
            ));
        }
        if ca.is_some() && !url.starts_with("https://") {
            return Err(("ca", "is for an https address; leave it out".to_owned()));
        }
        Endpoint::parse(url, ca).map_err(|why| (key, why))
    }

    /// What a reference names, or the variable where its own tools look.
    fn secret(
        &mut self,
        key: &'static str,
        named: Option<&str>,
        usual: &str,
    ) -> Result<Secret, Fault> {
        let default = format!("env:{usual}");
        let text = named.unwrap_or(&default);
        let at = |why: String| {
            let hint = if named.is_none() {
                format!("{why}; set it, or say {key} = \"file:…\"")
            } else {
                why
            };
            (key, hint)
        };
        let read = reference::parse(text).map_err(at)?;
        if let reference::Reference::Env(name) = &read {
            self.variables.push((*name).to_owned());
        }
        let found = reference::resolve_plain(&read, self.data, self.env).map_err(at)?;
        Ok(Secret::new(found))
    }
}

fn needed<'w>(key: &'static str, value: Option<&'w str>) -> Result<&'w str, Fault> {
    value.ok_or_else(|| (key, "is missing; this provider needs it".to_owned()))
}

fn region(written: &written::Kms) -> Result<&str, Fault> {
    let region = needed("region", written.region.as_deref())?;
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if region.is_empty() || region.len() > 40 || !region.bytes().all(good) {
        return Err((
            "region",
            "must be a region's name, such as \"eu-central-1\" or \"cn-hangzhou\"".to_owned(),
        ));
    }
    Ok(region)
}

fn key_id(written: &written::Kms) -> Result<String, Fault> {
    let id = needed("key_id", written.key_id.as_deref())?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b":/_-.".contains(&b);
    if id.is_empty() || id.len() > 512 || !id.bytes().all(good) {
        return Err((
            "key_id",
            "must be a key's id, its ARN, or \"alias/NAME\"".to_owned(),
        ));
    }
    Ok(id.to_owned())
}

/// A label or number as tokens have them.
fn name(key: &'static str, text: &str) -> Result<String, Fault> {
    if (1..=64).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(text.to_owned());
    }
    Err((key, "must be 1 to 64 bytes of text".to_owned()))
}

fn is_hex(text: &str) -> bool {
    (2..=128).contains(&text.len())
        && text.len().is_multiple_of(2)
        && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// One segment of a path that means nothing else.
fn is_segment(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !text.is_empty() && text.len() <= 128 && text.bytes().all(good) && text != "." && text != ".."
}

/// Every text that belongs to some providers only, with what was written.
fn fields(written: &written::Kms) -> [(&'static str, Option<&String>); 17] {
    let written::Kms {
        provider: _,
        address,
        mount,
        key,
        token,
        ca,
        namespace,
        key_id,
        region,
        endpoint,
        access_key_id,
        access_key_secret,
        session_token,
        module,
        token_label,
        token_serial,
        pin,
        network: _,
        module_environment: _,
        check_every: _,
    } = written;
    [
        ("provider", None),
        ("address", address.as_ref()),
        ("mount", mount.as_ref()),
        ("key", key.as_ref()),
        ("token", token.as_ref()),
        ("ca", ca.as_ref()),
        ("namespace", namespace.as_ref()),
        ("key_id", key_id.as_ref()),
        ("region", region.as_ref()),
        ("endpoint", endpoint.as_ref()),
        ("access_key_id", access_key_id.as_ref()),
        ("access_key_secret", access_key_secret.as_ref()),
        ("session_token", session_token.as_ref()),
        ("module", module.as_ref()),
        ("token_label", token_label.as_ref()),
        ("token_serial", token_serial.as_ref()),
        ("pin", pin.as_ref()),
    ]
}

const PROVIDERS: [&str; 5] = ["file", "vault", "aws", "aliyun", "pkcs11"];
