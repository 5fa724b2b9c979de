{{- define "merit.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "merit.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "merit.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "merit.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "merit.selector" -}}
app.kubernetes.io/name: {{ include "merit.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "merit.labels" -}}
{{ include "merit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "merit.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "merit.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "merit.fullname" .) "default") -}}
{{- end -}}

{{/* The most pods that charge there can be: what an outage divides limits by. */}}
{{- define "merit.expectedNodes" -}}
{{- $most := 0 -}}
{{- range $role := include "merit.charging" . | splitList " " | compact -}}
{{- $table := index $.Values.roles $role -}}
{{- $most = add $most ($table.autoscaling.enabled | ternary $table.autoscaling.maxReplicas $table.replicas) -}}
{{- end -}}
{{- .Values.store.expectedNodes | default (max 1 $most) | int64 -}}
{{- end -}}

{{/* Roles whose pods charge the buckets. */}}
{{- define "merit.charging" -}}
{{- $roles := list -}}
{{- if or (ne .Values.mode "standalone") .Values.roles.gateway.enabled -}}{{- $roles = append $roles "gateway" -}}{{- end -}}
{{- if include "merit.rls" . -}}{{- $roles = append $roles "rls" -}}{{- end -}}
{{- join " " $roles -}}
{{- end -}}

{{/* Not empty where there are pods of `rls`. */}}
{{- define "merit.rls" -}}
{{- if and (eq .Values.mode "standalone") .Values.roles.rls.enabled -}}yes{{- end -}}
{{- end -}}

{{/*
Where the feed bridge runs: `apart` in a pod of its own; `within` the process of all roles, whose bus or loopback it needs;
empty where there is none. There is never a second one: each would deliver every rating.
*/}}
{{- define "merit.feed" -}}
{{- $v := .Values -}}
{{- if eq $v.mode "standalone" -}}
{{- if $v.roles.feed.enabled -}}apart{{- end -}}
{{- else if $v.feed.url -}}
{{- or (eq $v.bus.kind "in-process") (regexMatch "^http://" $v.feed.forwardTo) | ternary "within" "apart" -}}
{{- end -}}
{{- end -}}

{{/* Roles that have Deployments of their own here. */}}
{{- define "merit.roles" -}}
{{- $roles := list -}}
{{- if eq .Values.mode "standalone" -}}
{{- range $role := list "gateway" "ingest" "tuner" "rls" -}}
{{- if (index $.Values.roles $role).enabled -}}{{- $roles = append $roles $role -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq (include "merit.feed" .) "apart" -}}{{- $roles = append $roles "feed" -}}{{- end -}}
{{- join " " $roles -}}
{{- end -}}

{{/* What values.schema.json cannot refuse, because two values make it wrong. */}}
{{- define "merit.refusals" -}}
{{- $v := .Values -}}
{{- $least := add (int64 $v.preStopSeconds) 40 -}}
{{- if lt (int64 $v.terminationGracePeriodSeconds) $least -}}
{{- fail (printf "terminationGracePeriodSeconds: is %d, and a pod is to have preStopSeconds and 40 seconds: set it to %d or more" (int64 $v.terminationGracePeriodSeconds) $least) -}}
{{- end -}}
{{- if eq (include "merit.feed" .) "within" -}}
{{- $table := $v.roles.gateway -}}
{{- if eq $v.mode "inject" -}}
{{- fail (printf "feed.forwardTo: is %s, and the bridge runs in a pod of its own, where that is not your API: name its Service, https://…, or leave it empty and set feed.publish" $v.feed.forwardTo) -}}
{{- else if or $table.autoscaling.enabled (ne (int64 $table.replicas) 1) -}}
{{- fail (printf "feed.forwardTo: is %s, so the bridge runs in the API's pod, and each of several would deliver every rating: set roles.gateway.replicas to 1, without autoscaling, or name the API's Service, https://…" $v.feed.forwardTo) -}}
{{- end -}}
{{- end -}}
{{- if and (ne $v.mode "standalone") (regexMatch "(?m)^[ \t]*\\[[ \t]*feed[ \t]*[].]" $v.extraConfig) -}}
{{- fail "extraConfig: a table [feed] would run a bridge in every pod: set feed.url, for which there is one" -}}
{{- end -}}
{{- end -}}

{{/* Secrets as variables: [name of the variable, {name, key}]. */}}
{{- define "merit.secrets" -}}
{{- $v := .Values -}}
{{- $all := list
  (list "MERIT_JWT_SECRET" $v.identity.secret)
  (list "REDIS_URL" $v.store.urlSecret)
  (list "REDIS_PASSWORD" $v.store.passwordSecret)
  (list "BUS_PASSWORD" $v.bus.passwordSecret)
  (list "RECEIPT_KEYS" $v.ratings.receiptKeysSecret)
  (list "INGEST_API_KEYS" $v.ingest.apiKeySecret)
  (list "FEED_FORWARD_KEY" $v.feed.apiKeySecret)
  (list "MERIT_ADMIN_TOKEN" $v.admin.tokenSecret)
-}}
{{- range $header, $secret := $v.feed.headers -}}
{{- $all = append $all (list (printf "FEED_HEADER_%s" ($header | upper | replace "-" "_")) $secret) -}}
{{- end -}}
{{- range $pair := $all -}}
{{- $secret := index $pair 1 }}
{{- if $secret.name }}
- name: {{ index $pair 0 }}
  valueFrom:
    secretKeyRef: {name: {{ $secret.name }}, key: {{ $secret.key }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Secrets as files: [file, {name, key}]. */}}
{{- define "merit.files" -}}
{{- range $pair := list (list "store-ca.pem" .Values.store.caSecret) (list "bus-ca.pem" .Values.bus.caSecret) (list "agent-keys" .Values.identity.apiKeysSecret) -}}
{{- $secret := index $pair 1 }}
{{- if $secret.name }}
- secret: {name: {{ $secret.name }}, items: [{key: {{ $secret.key }}, path: {{ index $pair 0 }}}]}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What every container of Merit may do. */}}
{{- define "merit.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/*
Seconds that an API behind Merit in its pod still answers once the pod is told to end: Merit sends it requests for `preStopSeconds`,
what waits in its backlog (0.3 s), and the 10 s for which it drains.
*/}}
{{- define "merit.apiStopsAfter" -}}
{{- add (int64 .Values.preStopSeconds) 11 -}}
{{- end -}}

{{- define "merit.podSecurity" -}}
runAsNonRoot: true
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* The container: (dict "root" $ "role" "gateway" "table" roles.gateway "name" "merit"). */}}
{{- define "merit.container" -}}
{{- $ := .root -}}
{{- $all := eq .role "all" -}}
name: {{ .name }}
image: {{ include "merit.image" $ | quote }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
args: ["run", "--config", "/etc/merit/{{ include "merit.configFile" . }}", "--role", {{ .role | quote }}]
ports:
  - {name: metrics, containerPort: 9901}
  {{- if or $all (eq .role "gateway") }}
  - {name: gateway, containerPort: 8080}
  {{- end }}
  {{- if or $all (eq .role "ingest") }}
  - {name: ingest, containerPort: 8081}
  {{- if $.Values.ingest.grpc }}
  - {name: grpc, containerPort: 8082}
  {{- end }}
  {{- end }}
  {{- if eq .role "rls" }}
  - {name: rls, containerPort: 8084}
  {{- end }}
{{- with printf "%s%s" (include "merit.secrets" $) (empty .table.env | ternary "" (printf "\n%s" (toYaml .table.env))) | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 3
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 3
{{- with $.Values.preStopSeconds | int64 }}
lifecycle:
  preStop: {sleep: {seconds: {{ . }}}}
{{- end }}
resources:
  {{- toYaml .table.resources | nindent 2 }}
securityContext:
  {{- include "merit.containerSecurity" $ | nindent 2 }}
  runAsUser: 65532
  runAsGroup: 65532
volumeMounts:
  - {name: merit-config, mountPath: /etc/merit, readOnly: true}
  - {name: merit-state, mountPath: /var/lib/merit}
  {{- if include "merit.files" $ }}
  - {name: merit-files, mountPath: /etc/merit-files, readOnly: true}
  {{- end }}
  {{- if and $.Values.checkpoint.enabled (or $all (eq .role "tuner")) }}
  - {name: merit-models, mountPath: /models}
  {{- end }}
{{- end -}}

{{/* The volumes of a pod of `role`. */}}
{{- define "merit.volumes" -}}
{{- $ := .root -}}
- name: merit-config
  configMap: {name: {{ include "merit.fullname" $ }}}
- name: merit-state
  {{- if and (eq .role "feed") $.Values.feed.spoolSize }}
  persistentVolumeClaim: {claimName: {{ include "merit.fullname" $ }}-feed}
  {{- else }}
  emptyDir: {sizeLimit: 2Gi}
  {{- end }}
{{- $beside := and (eq $.Values.mode "inject") (eq .role "all") }}
{{- with include "merit.files" $ | trim }}
- name: merit-files
  projected:
    {{- if $beside }}
    # Files are root's, and your pod may have no fsGroup that makes them Merit's too: in a container that mounts them all may read.
    defaultMode: 0444
    {{- else }}
    defaultMode: 0440
    {{- end }}
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- if and $.Values.checkpoint.enabled (or (eq .role "all") (eq .role "tuner")) }}
- name: merit-models
  persistentVolumeClaim:
    claimName: {{ $.Values.checkpoint.existingClaim | default (printf "%s-models" (include "merit.fullname" $)) }}
{{- end }}
{{- end -}}

{{/* What the rules ask for: the job, the role, and the namespace, which the operator adds. */}}
{{- define "merit.relabelings" -}}
- {targetLabel: job, replacement: merit}
{{- if eq .Values.mode "inject" }}
# Your pods' labels say nothing of Merit's roles; those of the bridge do.
- {targetLabel: component, replacement: gateway}
- sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_name, __meta_kubernetes_pod_label_app_kubernetes_io_component]
  regex: {{ include "merit.name" . }};(.+)
  targetLabel: component
{{- else }}
- {sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component], targetLabel: component}
{{- end }}
{{- end -}}
