// What a draft of buckets and routes changes, in words.

/** Returns a deep copy of what is JSON. */
export const copy = (value) => JSON.parse(JSON.stringify(value));

export const routeName = (route) => [route.methods?.join(" "), route.path].filter(Boolean).join(" ");

const word = (value) => (value === undefined || value === null || (Array.isArray(value) && value.length === 0) ? "nothing" : Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value));

function members(before, after, skip) {
  const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((key) => !skip.includes(key));
  return keys.filter((key) => word(before[key]) !== word(after[key])).map((key) => `${key} from ${word(before[key])} to ${word(after[key])}`);
}

/** Returns one sentence for each thing that `after` has otherwise than `before`. */
export function changes(before, after) {
  const found = [];
  const buckets = (of) => new Map(of.buckets.map((bucket) => [bucket.bucket_name, bucket]));
  const [old, now] = [buckets(before), buckets(after)];
  for (const [name, bucket] of now) {
    if (!old.has(name)) found.push(`bucket ${name} is new: ${word(bucket.refill_rate)} tokens a second, ${word(bucket.capacity)} at once`);
    else for (const change of members(old.get(name), bucket, ["bucket_name"])) found.push(`bucket ${name}: ${change}`);
  }
  for (const name of old.keys()) if (!now.has(name)) found.push(`bucket ${name} is removed`);

  const routes = (of) => new Map(of.routes.map((route) => [routeName(route), route]));
  const [was, is] = [routes(before), routes(after)];
  for (const [name, route] of is) {
    if (!was.has(name)) found.push(`route ${name} is new: charged to ${word(route.buckets)} beside the default bucket, cost ${word(route.cost ?? 1)}`);
    else for (const change of members(was.get(name), route, ["path", "methods"])) found.push(`route ${name}: ${change}`);
  }
  for (const name of was.keys()) if (!is.has(name)) found.push(`route ${name} is removed`);
  const order = (of, other) => of.routes.map(routeName).filter((name) => other.has(name)).join("\n");
  if (order(before, is) !== order(after, was)) found.push("routes are tried in another order");
  // Two routes may have one name: nothing else tells that one of them is new.
  if (found.length === 0 && JSON.stringify([before.buckets, before.routes]) !== JSON.stringify([after.buckets, after.routes])) found.push("members are in another order, or a route stands twice");
  return found;
}
