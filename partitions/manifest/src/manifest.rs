//! A whole `partition.toml`, checked by itself: the first of the nine rules. Or the same out of an
//! envelope, as the text that the signed document is.

use crate::diagnostic::{Code, Diagnostic, Place, Rejected};
use crate::document::{self, Problem};
use crate::draft::{At, GrantDraft, PartitionDraft};
use crate::mandate::Mandate;
use crate::parse::{parse_table, text_of};
use crate::partition_toml::read_manifest;
use crate::reader::Report;
use crate::system::Partition;
use crate::validate::{granted, validate_alone};
use bulkhead_capability::{Capability, Grant};
use bulkhead_signature::{Envelope, EnvelopeError};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A manifest of one partition that keeps the first rule: it is what a manifest may be.
#[derive(Clone, Debug)]
pub struct Manifest {
    file: String,
    text: String,
    partition: Partition,
    mandate: Mandate,
    grants: Vec<At<Grant>>,
    disk_files: Vec<At<Capability>>,
    boot_files: Vec<At<PathBuf>>,
    spans: Spans,
}

/// Where in the text single things were written, if they were.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans {
    pub(crate) name: Option<Range<usize>>,
    pub(crate) role: Option<Range<usize>>,
    pub(crate) parent: Option<Range<usize>>,
    pub(crate) memory: Option<Range<usize>>,
    pub(crate) vcpus: Option<Range<usize>>,
    pub(crate) autonomy: Option<Range<usize>>,
    pub(crate) tool_limits: Option<Range<usize>>,
    pub(crate) conditions: Option<Range<usize>>,
    pub(crate) limits: Option<Range<usize>>,
    pub(crate) lifetime: Option<Range<usize>>,
    pub(crate) spawn: Option<Range<usize>>,
    pub(crate) budget: Option<Range<usize>>,
}

impl Spans {
    fn of(draft: &PartitionDraft) -> Self {
        fn span<T>(at: Option<&At<T>>) -> Option<Range<usize>> {
            at.and_then(|at| at.span.clone())
        }
        let mandate = draft.mandate.as_ref().map(|mandate| &mandate.value);
        let lifetime = mandate.and_then(|m| m.lifetime.as_ref());
        let terms = lifetime.map(|lifetime| &lifetime.value);
        let max = span(terms.and_then(|terms| terms.max.as_ref()));
        let unlimited = span(terms.and_then(|terms| terms.unlimited.as_ref()));
        let tools = mandate
            .and_then(|m| m.tools.as_ref())
            .map(|tools| &tools.value);
        Self {
            name: span(draft.name.as_ref()),
            role: span(mandate.and_then(|m| m.role.as_ref())),
            parent: span(mandate.and_then(|m| m.parent.as_ref())),
            memory: span(draft.memory.as_ref()),
            vcpus: span(draft.vcpus.as_ref()),
            autonomy: span(draft.autonomy.as_ref()),
            tool_limits: span(tools.and_then(|tools| tools.limits.as_ref())),
            conditions: span(draft.conditions.as_ref()),
            limits: span(draft.limits.as_ref()),
            lifetime: max.or(unlimited).or(span(lifetime)),
            spawn: span(mandate.and_then(|m| m.spawn.as_ref())),
            budget: span(mandate.and_then(|m| m.budget.as_ref())),
        }
    }
}

/// Files of the host that lie behind disks beside those that are granted: what a guest writes to an
/// overlay is written, what an image is based on is read.
fn disk_files(grants: &[At<GrantDraft>], base: &Path) -> Vec<At<Capability>> {
    let mut files = Vec::new();
    for At { value: grant, .. } in grants {
        if let Some(overlay) = &grant.overlay {
            files.push(At {
                value: Capability::BlockWrite(base.join(&overlay.value)),
                span: overlay.span.clone(),
            });
        }
        let images = grant.backing.iter().filter_map(|at| at.value.path.as_ref());
        files.extend(images.map(|image| At {
            value: Capability::BlockRead(base.join(&image.value)),
            span: image.span.clone(),
        }));
    }
    files
}

/// Files of the host that are copied into the guest, or run there.
fn boot_files(draft: &PartitionDraft, base: &Path) -> Vec<At<PathBuf>> {
    let sources = draft.mounts.iter().map(|mount| mount.value.source.as_ref());
    let others = [&draft.program, &draft.root, &draft.image, &draft.initrd];
    let files = sources.chain(others.map(Option::as_ref)).flatten();
    let of_host = files.filter(|file| !file.value.starts_with('@'));
    of_host
        .map(|file| At {
            value: base.join(&file.value),
            span: file.span.clone(),
        })
        .collect()
}

/// Reads and checks a `partition.toml`. `file` is its path, for messages and as the start of the
/// relative paths in it; it is not opened.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse_manifest(bytes: &[u8], file: &Path) -> Result<Manifest, Rejected> {
    let name = file.display().to_string();
    let text = text_of(bytes, &name)?;
    let base = file.parent().unwrap_or(Path::new(""));
    check(text.to_owned(), name, base)
}

/// Reads and checks a document that was written down when its partition started. `file` is where, for
/// messages.
///
/// # Errors
/// It is none.
pub fn parse_document(document: &[u8], file: &Path) -> Result<Manifest, Rejected> {
    let name = file.display().to_string();
    let text = document::to_text(document).map_err(|problem| refused(problem, &name))?;
    let manifest = check(text, name.clone(), Path::new("/"))?;
    if manifest.document() != document {
        let message = "the payload names a file by a relative path".to_owned();
        return Err(refused((Code::Path, message), &name));
    }
    Ok(manifest)
}

/// A manifest as it was handed in: as text, or in an envelope, whoever signed that.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The manifest.
    pub manifest: Manifest,
    /// The envelope, in which the manifest is what the document says.
    pub envelope: Option<Envelope>,
}

/// Reads and checks a `partition.toml`, or an envelope: one is told from the other by its first sign.
/// Places in the refusals of an envelope are those of the text that [`Manifest::text`] has. `file`
/// is its path, for messages and as the start of the relative paths in a text.
///
/// # Errors
/// Everything that is wrong with it; an envelope that is none, or whose payload is no document.
pub fn parse_submission(bytes: &[u8], file: &Path) -> Result<Submission, Rejected> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'{') {
        let manifest = parse_manifest(bytes, file)?;
        let envelope = None;
        return Ok(Submission { manifest, envelope });
    }
    let no_envelope = |error: EnvelopeError| {
        refused((Code::Form, error.to_string()), &file.display().to_string())
    };
    let envelope = Envelope::parse(bytes).map_err(no_envelope)?;
    Ok(Submission {
        manifest: parse_document(envelope.unverified_payload(), file)?,
        envelope: Some(envelope),
    })
}

fn refused((code, message): Problem, file: &str) -> Rejected {
    Rejected {
        file: Some(file.to_owned()),
        diagnostics: vec![Diagnostic {
            code,
            message,
            help: "make it with `bulkhead manifest sign`".to_owned(),
            place: None,
            field: None,
        }],
    }
}

/// The first rule.
fn check(text: String, file: String, base: &Path) -> Result<Manifest, Rejected> {
    let root = parse_table(&text, &file)?;
    let mut report = Report::new(&text);
    let mut draft = read_manifest(&mut report, root.get_ref());
    if report.diagnostics.is_empty() {
        match document::of_text(&text, base) {
            Ok(document) => {
                if let Some(mandate) = &mut draft.mandate {
                    mandate.value.document = document;
                }
            }
            Err(problem) => return Err(refused(problem, &file)),
        }
    }
    let partition = report.check(|refuse| validate_alone(&draft, base, refuse), &file)?;
    let mut ignore = |_, _: Option<Range<usize>>, _: String, _: String| {};
    let grants = (draft.grants.iter())
        .filter_map(|grant| granted(grant, base, &mut ignore))
        .collect();
    let Some(mandate) = partition.mandate.clone() else {
        let message = "the text is no manifest of a partition".to_owned();
        return Err(refused((Code::Form, message), &file));
    };
    Ok(Manifest {
        file,
        text,
        partition,
        mandate,
        grants,
        disk_files: disk_files(&draft.grants, base),
        boot_files: boot_files(&draft, base),
        spans: Spans::of(&draft),
    })
}

impl Manifest {
    /// Its text: the file, or what the signed document is as people write it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The path that it was read from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The checked partition.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// What bounds it as a whole.
    pub fn mandate(&self) -> &Mandate {
        &self.mandate
    }

    /// What it is called, among all partitions of this host.
    pub fn identity(&self) -> &str {
        &self.partition.name
    }

    /// What is signed: the manifest in canonical JSON, with absolute paths.
    pub fn document(&self) -> &[u8] {
        &self.mandate.document
    }

    /// Every grant, also those that sections imply, and where it was written.
    pub fn grants(&self) -> &[At<Grant>] {
        &self.grants
    }

    /// The same with more grants, which somebody wants to add while it runs. They have places in no
    /// text. Nothing if one of them is no grant.
    pub fn with_grants(mut self, added: &[GrantDraft], base: &Path) -> Option<Self> {
        let mut ignore = |_, _: Option<Range<usize>>, _: String, _: String| {};
        let drafts: Vec<At<GrantDraft>> = added.iter().cloned().map(At::from).collect();
        for draft in &drafts {
            self.grants.push(granted(draft, base, &mut ignore)?);
        }
        self.disk_files.extend(disk_files(&drafts, base));
        Some(self)
    }

    /// Files behind its disks beside those that are granted, and where they were written.
    pub(crate) fn disk_files(&self) -> &[At<Capability>] {
        &self.disk_files
    }

    /// Files of the host that are copied into the guest, and where they were written.
    pub(crate) fn boot_files(&self) -> &[At<PathBuf>] {
        &self.boot_files
    }

    /// Where single things were written.
    pub(crate) fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Where in the text something stands.
    pub(crate) fn place(&self, span: Option<Range<usize>>) -> Option<Place> {
        span.map(|span| Place::of(&self.text, span))
    }
}

#[cfg(test)]
pub(crate) mod tests;
