{{/* merit.toml. What can be refused without a cluster is refused by values.schema.json; the rest by `merit check-config`. */}}
{{- define "merit.toml" -}}
{{- $v := .Values -}}
{{- $beside := ne $v.mode "standalone" -}}
# Written by the chart; its values are documented in its README.md.

[identity]
key_selector = {{ $v.identity.keySelector | quote }}
{{- /* Without keys there are no tokens, and what is about them is a fault. */}}
{{- $tokens := or $v.identity.jwksUrl $v.identity.secret.name }}
{{- if $tokens }}
algorithms = {{ $v.identity.algorithms | toJson }}
{{- end }}
{{- with $v.identity.jwksUrl }}
jwks_url = {{ . | quote }}
{{- end }}
{{- if $v.identity.secret.name }}
secret_env = "MERIT_JWT_SECRET"
{{- end }}
{{- if $v.identity.apiKeysSecret.name }}
api_keys_file = "/etc/merit-files/agent-keys"
{{- end }}
{{- with $v.identity.issuer }}
issuer = {{ . | quote }}
{{- end }}
{{- if and $tokens $v.identity.audience }}
audience = {{ $v.identity.audience | quote }}
{{- end }}
{{- with $v.identity.trustedProxies }}
trusted_proxies = {{ . | toJson }}
{{- end }}

[store]
kind = "redis"
{{- with $v.store.url }}
url = {{ . | quote }}
{{- end }}
{{- if $v.store.urlSecret.name }}
url_env = "REDIS_URL"
{{- end }}
{{- with $v.store.cluster }}
cluster = {{ . | toJson }}
{{- end }}
{{- with $v.store.username }}
username = {{ . | quote }}
{{- end }}
{{- if $v.store.passwordSecret.name }}
password_env = "REDIS_PASSWORD"
{{- end }}
{{- if $v.store.caSecret.name }}
tls_ca_file = "/etc/merit-files/store-ca.pem"
{{- end }}
timeout = {{ $v.store.timeout | quote }}
on_outage = {{ $v.store.onOutage | quote }}
mode = {{ $v.store.mode | quote }}
expected_nodes = {{ include "merit.expectedNodes" . }}
{{- with $v.store.sentinel }}

[store.sentinel]
master = {{ .master | quote }}
urls = {{ .urls | toJson }}
{{- end }}
{{- range $v.buckets }}

[[bucket]]
bucket_name = {{ .name | quote }}
default = {{ .default | default false }}
refill_rate = {{ .refillRate }}
capacity = {{ .capacity | int64 }}
{{- if .earned }}
earned = true
{{- end }}
{{- if .shadow }}
shadow = true
{{- end }}
{{- end }}
{{- range $v.routes }}

[[route]]
path = {{ .path | quote }}
{{- with .methods }}
methods = {{ . | toJson }}
{{- end }}
{{- with .buckets }}
buckets = {{ . | toJson }}
{{- end }}
{{- if hasKey . "cost" }}
cost = {{ .cost | int64 }}
{{- end }}
{{- with .onOutage }}
on_outage = {{ . | quote }}
{{- end }}
{{- if .shadow }}
shadow = true
{{- end }}
{{- end }}

[bus]
kind = {{ $v.bus.kind | quote }}
{{- if ne $v.bus.kind "in-process" }}
topic = {{ $v.bus.topic | quote }}
partitions = {{ $v.bus.partitions | int64 }}
{{- end }}
{{- if eq $v.bus.kind "kafka" }}
brokers = {{ $v.bus.address | quote }}
group = {{ $v.bus.group | quote }}
generation = {{ $v.bus.generation | int64 }}
security = {{ $v.bus.security | quote }}
{{- with $v.bus.saslMechanism }}
sasl_mechanism = {{ . | quote }}
{{- end }}
{{- if $v.bus.caSecret.name }}
ca_file = "/etc/merit-files/bus-ca.pem"
{{- end }}
{{- else if ne $v.bus.kind "in-process" }}
{{- with $v.bus.address }}
url = {{ . | quote }}
{{- end }}
{{- if $v.bus.caSecret.name }}
tls_ca_file = "/etc/merit-files/bus-ca.pem"
{{- end }}
{{- end }}
{{- with $v.bus.username }}
username = {{ . | quote }}
{{- end }}
{{- if $v.bus.passwordSecret.name }}
password_env = "BUS_PASSWORD"
{{- end }}

[policy]
{{- with $v.policy.kind }}
kind = {{ . | quote }}
{{- end }}
{{- with $v.policy.mode }}
mode = {{ . | quote }}
{{- end }}
{{- with $v.policy.serviceCapacity }}
service_capacity = {{ . }}
{{- end }}
r_min = {{ $v.policy.rMin }}
r_max = {{ $v.policy.rMax }}
{{- with $v.policy.alpha }}
alpha = {{ . }}
{{- end }}
{{- if $v.checkpoint.enabled }}
checkpoint = "/models/model.chkpt"
{{- end }}

[ratings]
receipts = {{ $v.ratings.receipts | quote }}
{{- if $v.ratings.receiptKeysSecret.name }}
receipt_keys_env = "RECEIPT_KEYS"
{{- end }}

[tuner]
replay_window = {{ $v.tuner.replayWindow | quote }}
{{- if $v.personalize.enabled }}

[personalize]
enabled = true
checkpoint = "/var/lib/merit/scores"

[personalize.events]
allow_origins = {{ $v.personalize.allowOrigins | toJson }}
{{- end }}

[gateway]
{{- if or $beside $v.roles.gateway.enabled }}
listen = "0.0.0.0:8080"
{{- if eq $v.mode "sidecar" }}
upstream = {{ printf "http://127.0.0.1:%d" (int64 $v.sidecar.api.port) | quote }}
{{- else if eq $v.mode "inject" }}
upstream = {{ printf "http://127.0.0.1:%d" (int64 $v.inject.port) | quote }}
{{- else }}
upstream = {{ $v.gateway.upstream | quote }}
{{- end }}
{{- with $v.gateway.teeRatings }}
tee_ratings = {{ . | quote }}
{{- end }}
trust_forwarded = {{ $v.gateway.trustForwarded }}
{{- end }}
retry_jitter = {{ $v.gateway.retryJitter | quote }}
{{- with $v.gateway.allow }}
allow = {{ . | toJson }}
{{- end }}
shadow = {{ $v.gateway.shadow }}
{{- if or $beside $v.roles.ingest.enabled }}

[ingest]
listen = "0.0.0.0:8081"
{{- if $v.ingest.grpc }}
grpc_listen = "0.0.0.0:8082"
{{- end }}
rater_rate = {{ $v.ingest.raterRate }}
{{- if $v.ingest.apiKeySecret.name }}
api_key_env = "INGEST_API_KEYS"
{{- end }}
{{- end }}
{{- if include "merit.rls" . }}

[rls]
listen = "0.0.0.0:8084"
{{- with $v.rls.domain }}
domain = {{ . | quote }}
{{- end }}
identify = {{ $v.rls.identify | quote }}
agent_key = {{ $v.rls.agentKey | quote }}
path_key = {{ $v.rls.pathKey | quote }}
method_key = {{ $v.rls.methodKey | quote }}
{{- end }}
{{- if or (eq (include "merit.feed" .) "within") (and (not $beside) (include "merit.feed" .)) }}

{{ include "merit.feedTable" . }}
{{- end }}

[metrics]
listen = "0.0.0.0:9901"
top_agents = {{ $v.monitoring.topAgents | int }}

[admin]
listen = "127.0.0.1:9900"
{{- if $v.admin.tokenSecret.name }}
token_env = "MERIT_ADMIN_TOKEN"
{{- end }}
{{- with $v.admin.auditLog }}
audit_log = {{ . | quote }}
{{- end }}

[log]
format = {{ $v.log.format | quote }}
filter = {{ $v.log.filter | quote }}
{{- with $v.trace.endpoint }}

[trace]
endpoint = {{ . | quote }}
sample = {{ $v.trace.sample }}
{{- end }}
{{- with $v.extraConfig }}

{{ . }}
{{- end }}
{{ end -}}

{{- define "merit.feedTable" -}}
{{- $v := .Values -}}
[feed]
url = {{ $v.feed.url | quote }}
{{- with $v.feed.resumeQuery }}
resume_query = {{ . | quote }}
{{- end }}
publish = {{ $v.feed.publish }}
{{- with $v.feed.forwardTo }}
forward_to = {{ . | quote }}
{{- end }}
{{- if $v.feed.apiKeySecret.name }}
api_key_env = "FEED_FORWARD_KEY"
{{- end }}
spool_dir = "/var/lib/merit/spool"
{{- if $v.feed.headers }}

[feed.headers]
{{- range $header, $secret := $v.feed.headers }}
{{ $header | quote }} = { env = {{ printf "FEED_HEADER_%s" ($header | upper | replace "-" "_") | quote }} }
{{- end }}
{{- end }}
{{- end -}}

{{/* The file in /etc/merit that a container of `role` reads: (dict "root" $ "role" …). Beside an API the bridge alone has [feed]. */}}
{{- define "merit.configFile" -}}
{{- and (ne .root.Values.mode "standalone") (eq .role "feed") | ternary "feed.toml" "merit.toml" -}}
{{- end -}}

{{/* What that file holds. */}}
{{- define "merit.config" -}}
{{ include "merit.toml" .root }}
{{- if eq (include "merit.configFile" .) "feed.toml" }}
{{ include "merit.feedTable" .root }}
{{ end -}}
{{- end -}}
