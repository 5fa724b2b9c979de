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

{{/* Roles that have pods here. */}}
{{- define "merit.roles" -}}
{{- $roles := list -}}
{{- range $role := list "gateway" "ingest" "tuner" "rls" "feed" -}}
{{- if (index $.Values.roles $role).enabled -}}{{- $roles = append $roles $role -}}{{- end -}}
{{- end -}}
{{- join " " $roles -}}
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
args: ["run", "--config", "/etc/merit/merit.toml", "--role", {{ .role | quote }}]
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
lifecycle:
  preStop: {sleep: {seconds: {{ $.Values.preStopSeconds | int64 }}}}
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
{{- with include "merit.files" $ | trim }}
- name: merit-files
  projected:
    defaultMode: 0440
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- if and $.Values.checkpoint.enabled (or (eq .role "all") (eq .role "tuner")) }}
- name: merit-models
  persistentVolumeClaim:
    claimName: {{ $.Values.checkpoint.existingClaim | default (printf "%s-models" (include "merit.fullname" $)) }}
{{- end }}
{{- end -}}
