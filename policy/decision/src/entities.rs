//! From an act to what Cedar is asked: principal, action, resource with what it is in, and context.
//! Whatever text a partition sends becomes the id of an entity or a string, never syntax.

use crate::conditions::ConditionsError;
use bulkhead_capability::table::Moment;
use bulkhead_conditions::Act;
use bulkhead_network::Protocol;
use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::str::FromStr;

/// Most directories or domains that something is in; no host name has more.
const MAX_PARENTS: usize = 128;

/// Who acts, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// Name of the system.
    pub system: String,
    /// Name of the partition.
    pub partition: String,
    /// Its ancestors, the nearest first.
    pub lineage: Vec<String>,
    /// When.
    pub moment: Moment,
    /// How many bytes the act announces, if it does.
    pub bytes: Option<u64>,
}

/// What Cedar is asked about `act`.
pub(crate) fn build(
    act: &Act,
    who: &Circumstances,
    schema: &Schema,
) -> Result<(Request, Entities), ConditionsError> {
    let not_asked = |error: &dyn std::fmt::Display| ConditionsError::NotAsked(error.to_string());
    let (kind, id, parents) = resource(act)?;
    let resource = uid(kind, &id)?;
    let parents = parents.iter().map(|(kind, id)| uid(kind, id));
    let parents: HashSet<EntityUid> = parents.collect::<Result<_, _>>()?;
    let principal = uid("Partition", &who.partition)?;
    let ancestors = who.lineage.iter().map(|name| uid("Partition", name));
    let ancestors: HashSet<EntityUid> = ancestors.collect::<Result<_, _>>()?;
    let lineage = who.lineage.iter().cloned();
    let lineage = lineage.map(RestrictedExpression::new_string);
    let attributes = HashMap::from([
        (
            "system".to_owned(),
            RestrictedExpression::new_string(who.system.clone()),
        ),
        ("lineage".to_owned(), RestrictedExpression::new_set(lineage)),
    ]);
    let partition = Entity::new(principal.clone(), attributes, ancestors);
    let entities = [
        partition.map_err(|error| not_asked(&error))?,
        Entity::new_no_attrs(resource.clone(), parents),
    ];
    let entities = Entities::from_entities(entities, Some(schema));
    let context = Context::from_pairs(context(act, who)).map_err(|error| not_asked(&error))?;
    let action = uid("Action", act.request().name().as_str())?;
    let request = Request::new(principal, action, resource, context, Some(schema));
    Ok((
        request.map_err(|error| not_asked(&error))?,
        entities.map_err(|error| not_asked(&error))?,
    ))
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, ConditionsError> {
    let kind = EntityTypeName::from_str(kind);
    let kind = kind.map_err(|error| ConditionsError::NotAsked(error.to_string()))?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

/// A kind of entity, its id, and what it is in.
type Resource = (&'static str, String, Vec<(&'static str, String)>);

fn resource(act: &Act) -> Result<Resource, ConditionsError> {
    let single = |kind, id: &str| (kind, id.to_owned(), Vec::new());
    let (kind, id, parents) = match act {
        Act::Connect { name, address, .. } => match (name, address) {
            (Some(name), _) => host(name),
            (None, Some(address)) => single("Host", &address.to_string()),
            (None, None) => return Err(ConditionsError::NotAsked("no host".to_owned())),
        },
        Act::Resolve(name) => host(name),
        Act::Secret(name) => single("Secret", name),
        Act::Model(name) => single("Model", name),
        Act::Tool(name, _) => {
            let family = name.split_once('.').map(|(family, _)| family.to_owned());
            let family = family.map(|family| ("ToolFamily", family));
            ("Tool", name.clone(), family.into_iter().collect())
        }
        Act::Exec(program) => path(Path::new(program)),
        Act::Spawn(role, _) => single("Role", role),
        Act::File { path: file, .. } => path(file),
    };
    match parents.len() <= MAX_PARENTS {
        true => Ok((kind, id, parents)),
        false => Err(ConditionsError::NotAsked(
            "its name has too many parts".to_owned(),
        )),
    }
}

/// The id of a host: in lower case, without the final dot, as grants have it.
pub(crate) fn host_id(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn host(name: &str) -> Resource {
    let name = host_id(name);
    let next = |name: &str| name.split_once('.').map(|(_, parent)| parent.to_owned());
    let domains = std::iter::successors(next(&name), |name| next(name));
    let domains = domains
        .take(MAX_PARENTS + 1)
        .map(|domain| ("Domain", domain));
    let domains = domains.collect();
    ("Host", name, domains)
}

fn path(path: &Path) -> Resource {
    let directories = path.ancestors().skip(1).take(MAX_PARENTS + 1);
    let directories = directories.map(|directory| ("Directory", directory.display().to_string()));
    ("Path", path.display().to_string(), directories.collect())
}

fn context(act: &Act, who: &Circumstances) -> Vec<(String, RestrictedExpression)> {
    let long =
        |number: u64| RestrictedExpression::new_long(i64::try_from(number).unwrap_or(i64::MAX));
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let now = who.moment.now.as_secs();
    let (day, hour) = (now / 86_400, now % 86_400 / 3600);
    let mut all = vec![
        ("time", long(now)),
        ("hour", long(hour)),
        // The first of January 1970 was a Thursday.
        ("weekday", long((day + 3) % 7 + 1)),
        ("age", long(who.moment.age.as_secs())),
    ];
    let bytes = || who.bytes.map(|bytes| ("bytes", long(bytes)));
    match act {
        Act::Connect {
            protocol,
            address,
            port,
            http,
            ..
        } => {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            all.push(("protocol", text(protocol)));
            all.push(("port", long((*port).into())));
            let address = address.map(|address| ("address", text(&address.to_string())));
            all.extend(address);
            if let Some((method, path)) = http {
                all.extend([("method", text(method)), ("path", text(path))]);
            }
            all.extend(bytes());
        }
        Act::Tool(_, paths) => {
            let paths = paths.iter().map(|path| text(&path.display().to_string()));
            all.push(("paths", RestrictedExpression::new_set(paths)));
            all.extend(bytes());
        }
        Act::Model(_) => all.extend(bytes()),
        Act::Spawn(_, count) => all.push(("count", long((*count).into()))),
        Act::Resolve(_) | Act::Secret(_) | Act::Exec(_) | Act::File { .. } => {}
    }
    all.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
