//! The token: found, logged in to, and asked to encrypt or decrypt 32 bytes with one AES key.
//!
//! It decides what a wrapped key looks like (`1 | IV, 12 | AES-GCM of the key, and its tag`, authenticated with
//! `wire::token::PURPOSE`), which faults are the token's word, and that a PIN which was refused isn't tried again: a
//! token locks itself after a few. It never reads an attribute that holds a key. Called by `serve`.

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use wire::token::{self, Answer, Ask, Fault, FaultKind, Key, PURPOSE, Start};
use zeroize::Zeroizing;

use crate::say;

pub(crate) struct Token {
    start: Start,
    module: Option<Pkcs11>,
    /// Logged in, with the key found.
    open: Option<Open>,
    /// The PIN was refused: it isn't tried again.
    refused: Option<Fault>,
}

struct Open {
    session: Session,
    key: ObjectHandle,
}

impl Token {
    pub(crate) const fn new(start: Start) -> Self {
        Self {
            start,
            module: None,
            open: None,
            refused: None,
        }
    }

    /// Does what is asked. A session that was lost is opened again, once.
    pub(crate) fn act(&mut self, ask: &Ask) -> Answer {
        let had_session = self.open.is_some();
        match self.try_act(ask) {
            Err(_lost) if had_session => {
                self.open = None;
                self.try_act(ask)
            }
            done => done,
        }
        .unwrap_or_else(|fault| {
            // Perhaps the session's fault: the next act begins anew.
            self.open = None;
            Answer::Fault(fault)
        })
    }

    fn try_act(&mut self, ask: &Ask) -> Result<Answer, Fault> {
        if self.open.is_none() {
            self.open = Some(self.open()?);
        }
        let open = self.open.as_ref().ok_or_else(|| away("no session"))?;
        match ask {
            Ask::Wrap(key) if key.len() == KEY_LENGTH => open.wrap(key).map(Answer::Wrapped),
            Ask::Wrap(_) => Err(refused("only a key of 32 bytes can be wrapped")),
            Ask::Open(blob) => open.unwrap(blob).map(Answer::Opened),
        }
    }

    /// Loads the module if it isn't, finds the token, logs in, finds the key.
    fn open(&mut self) -> Result<Open, Fault> {
        if let Some(fault) = &self.refused {
            return Err(fault.clone());
        }
        let module = match &self.module {
            Some(module) => module.clone(),
            None => {
                let module = load(&self.start.module)?;
                self.module = Some(module.clone());
                module
            }
        };
        let slot = self.slot(&module)?;
        let session = module
            .open_ro_session(slot)
            .map_err(|e| said("no session can be opened", &e))?;
        let pin = AuthPin::new(self.start.pin.as_str().into());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(fault) => {
                let is_pin = matches!(
                    fault,
                    Error::Pkcs11(
                        RvError::PinIncorrect
                            | RvError::PinInvalid
                            | RvError::PinLenRange
                            | RvError::PinExpired
                            | RvError::PinLocked
                            | RvError::UserPinNotInitialized,
                        _
                    )
                );
                let mut fault = said("the login failed", &fault);
                if is_pin {
                    fault.kind = FaultKind::Refused;
                    fault.text.push_str(
                        "; this PIN isn't tried again, so that the token doesn't lock itself: mend what pin in [kms] names, then send SIGHUP",
                    );
                    self.refused = Some(fault.clone());
                }
                return Err(fault);
            }
        }
        let key = self.key(&session)?;
        Ok(Open { session, key })
    }

    /// The one slot that holds the token.
    fn slot(&self, module: &Pkcs11) -> Result<Slot, Fault> {
        let slots = module
            .get_slots_with_token()
            .map_err(|e| said("its slots can't be listed", &e))?;
        let mut found = Vec::new();
        for slot in slots {
            // A reader that fails is not the one that is looked for.
            let Ok(info) = module.get_token_info(slot) else {
                continue;
            };
            let is_it = match &self.start.token {
                token::Token::Label(label) => info.label() == label,
                token::Token::Serial(serial) => info.serial_number() == serial,
            };
            if is_it {
                found.push((slot, info));
            }
        }
        match &found[..] {
            [] => Err(away(
                "no token of that name is there; look with: pkcs11-tool --module MODULE --list-token-slots",
            )),
            [(slot, info)] => {
                if info.user_pin_locked() {
                    return Err(refused("the token has locked its user's PIN"));
                }
                if info.user_pin_final_try() {
                    return Err(refused(
                        "one more wrong PIN would lock the token, so none is tried; log in by hand with the right one first",
                    ));
                }
                Ok(*slot)
            }
            _ => Err(refused(
                "several tokens have that label; name one by token_serial",
            )),
        }
    }

    /// The one AES key.
    fn key(&self, session: &Session) -> Result<ObjectHandle, Fault> {
        let named = match &self.start.key {
            Key::Label(label) => Attribute::Label(label.as_bytes().to_vec()),
            Key::Id(id) => Attribute::Id(id.clone()),
        };
        let wanted = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            named,
        ];
        let found = session
            .find_objects(&wanted)
            .map_err(|e| said("its keys can't be listed", &e))?;
        match found[..] {
            [key] => {
                let read = session.get_attributes(key, &[AttributeType::Extractable]);
                if read.is_ok_and(|read| read.contains(&Attribute::Extractable(true))) {
                    say("the key may leave the token (it is extractable): make one that may not");
                }
                Ok(key)
            }
            [] => Err(refused(
                "the token has no AES key of that name; make one with: pkcs11-tool --module MODULE --token-label TOKEN --login --keygen --key-type AES:32 --label NAME --sensitive",
            )),
            _ => Err(refused(
                "several AES keys have that name; name one by key_id",
            )),
        }
    }
}

impl Open {
    fn wrap(&self, key: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut iv = [0; IV_LENGTH];
        self.session
            .generate_random_slice(&mut iv)
            .map_err(|e| said("it gives no randomness", &e))?;
        let sealed = {
            let how = mechanism(&mut iv)?;
            self.session
                .encrypt(&how, self.key, key)
                .map_err(|e| said("it can't encrypt with AES-GCM under that key", &e))?
        };
        // The token may have put an IV of its own in.
        Ok([&[FORMAT], &iv[..], &sealed[..]].concat())
    }

    fn unwrap(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let foreign = || refused("that isn't a key which this token wrapped");
        let (&format, rest) = blob.split_first().ok_or_else(foreign)?;
        let (iv, sealed) = rest.split_first_chunk::<IV_LENGTH>().ok_or_else(foreign)?;
        if format != FORMAT || sealed.len() != KEY_LENGTH.saturating_add(TAG_LENGTH) {
            return Err(foreign());
        }
        let mut iv = *iv;
        let how = mechanism(&mut iv)?;
        match self.session.decrypt(&how, self.key, sealed) {
            Ok(key) => Ok(Zeroizing::new(key)),
            // What tokens say when the tag is wrong.
            Err(Error::Pkcs11(
                RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::GeneralError
                | RvError::FunctionFailed
                | RvError::DataInvalid,
                _,
            )) => Err(refused(
                "that was wrapped by another key, or was changed since",
            )),
            Err(fault) => Err(said("it can't decrypt with AES-GCM under that key", &fault)),
        }
    }
}

fn mechanism(iv: &mut [u8; IV_LENGTH]) -> Result<Mechanism<'_>, Fault> {
    GcmParams::new(iv, PURPOSE, TAG_BITS.into())
        .map(Mechanism::AesGcm)
        .map_err(|e| said("its parameters can't be made", &e))
}

fn load(path: &str) -> Result<Pkcs11, Fault> {
    let module = Pkcs11::new(path).map_err(|e| said("the module can't be loaded", &e))?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(module),
        Err(fault) => Err(said("the module doesn't begin", &fault)),
    }
}

/// A fault with the module's word for it: a name of the standard, not the long text that explains it.
fn said(what: &str, fault: &Error) -> Fault {
    let (word, kind) = match fault {
        Error::Pkcs11(word, _function) => {
            let kind = match word {
                RvError::KeyFunctionNotPermitted
                | RvError::MechanismInvalid
                | RvError::MechanismParamInvalid
                | RvError::KeyTypeInconsistent
                | RvError::KeySizeRange => FaultKind::Refused,
                _ => FaultKind::Away,
            };
            (format!("{word:?}"), kind)
        }
        other => (other.to_string(), FaultKind::Away),
    };
    let word: String = word
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    Fault {
        kind,
        text: format!("{what} ({word})"),
    }
}

fn away(text: &str) -> Fault {
    Fault {
        kind: FaultKind::Away,
        text: text.to_owned(),
    }
}

fn refused(text: &str) -> Fault {
    Fault {
        kind: FaultKind::Refused,
        text: text.to_owned(),
    }
}

/// First byte of a wrapped key.
const FORMAT: u8 = 1;
const KEY_LENGTH: usize = 32;
const IV_LENGTH: usize = 12;
const TAG_LENGTH: usize = 16;
const TAG_BITS: u64 = 128;
