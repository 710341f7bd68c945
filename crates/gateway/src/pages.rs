//! The chat page: four files in the binary, served without a key because they hold none.

/// One file.
#[derive(Debug)]
pub(crate) struct Page {
    /// Its media type.
    pub(crate) media_type: &'static str,
    /// Its bytes.
    pub(crate) bytes: &'static [u8],
}

/// In the order of `endpoints::What::Page`.
pub(crate) static PAGES: [Page; 4] = [
    Page {
        media_type: "text/html; charset=utf-8",
        bytes: include_bytes!("../../../web/chat/index.html"),
    },
    Page {
        media_type: "text/css; charset=utf-8",
        bytes: include_bytes!("../../../web/chat/chat.css"),
    },
    Page {
        media_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../../web/chat/chat.js"),
    },
    Page {
        media_type: "image/svg+xml",
        bytes: include_bytes!("../../../web/chat/icon.svg"),
    },
];

/// Nothing but our own files may run or be asked; no other page may frame this one.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
