//! Who else has a say in what a partition with a manifest is granted: its role, its ancestors, and what is
//! denied to everybody. For whoever explains a decision; judging is [`super::Admissions`]'s.

use super::{
    AdmissionError, LiveHost, ROLES, deny_list, document_path, manifest_at, real_path, role,
};
use crate::error::Error;
use crate::state_dir::{Found, StateRoot};
use bulkhead_capability::{Capability, Grants};
use bulkhead_manifest::{DenyList, Host, Manifest, lineage};
use bulkhead_places::Place;

/// What a partition cannot be granted more than.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Its role.
    pub role: String,
    /// What the role may have; none where nobody described it, and so nothing.
    pub of_role: Option<Grants>,
    /// Its ancestors, the nearest first, with what they have; none of one that does not run.
    pub ancestors: Vec<(String, Option<Grants>)>,
    deny: DenyList,
}

impl Bounds {
    /// Those of `manifest`, as operators have configured them and by what runs now.
    ///
    /// # Errors
    /// What is configured cannot be read or is not what it should be, or what runs cannot be told.
    pub fn of(manifest: &Manifest) -> Result<Self, AdmissionError> {
        let (config, root) = (Place::config()?, StateRoot::locate()?);
        let own = [&Place::data()?, &Place::checkpoints()?];
        let host = LiveHost::look(&root, None)?;
        let name = &manifest.mandate().role;
        let ancestors = lineage(manifest, &host).into_iter().map(|name| {
            let mut running = host.running().iter();
            let found = running.find(|running| running.identity() == name);
            let grants = found.map(|found| found.partition().grants.clone());
            (name, grants)
        });
        Ok(Self {
            role: name.clone(),
            of_role: role(&config.below(ROLES), name)?.map(|role| role.grants),
            ancestors: ancestors.collect(),
            deny: deny_list(&config, &own, &root)?,
        })
    }

    /// What denies a capability to everybody on this host, by its name or by what that leads to.
    pub fn denied(&self, wanted: &Capability) -> Option<&Capability> {
        let real = wanted
            .path()
            .and_then(|path| Capability::new(wanted.name(), real_path(path).to_str()).ok());
        let all = [Some(wanted.clone()), real];
        let mut list = self.deny.iter();
        list.find(|denied| all.iter().flatten().any(|one| one.is_denied_by(denied)))
    }
}

/// The manifest of a partition in the system `found`, if it has one of its own.
///
/// # Errors
/// It is there and cannot be read.
pub fn manifest_of(found: &Found, partition: &str) -> Result<Option<Manifest>, Error> {
    manifest_at(&document_path(&found.path, partition))
}
