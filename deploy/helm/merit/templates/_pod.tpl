{{/* Everything of a pod but its containers: (dict "root" $ "role" … "table" …). */}}
{{- define "merit.podSpec" -}}
{{- $ := .root -}}
{{- $component := eq .role "all" | ternary "gateway" .role -}}
serviceAccountName: {{ include "merit.serviceAccount" $ }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ $.Values.terminationGracePeriodSeconds | int64 }}
securityContext:
  {{- include "merit.podSecurity" $ | nindent 2 }}
{{- with .table.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .table.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and (eq $.Values.topology "edge") (eq .role "ingest") $.Values.roles.tuner.enabled }}
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "merit.selector" $ | nindent 12 }}
            app.kubernetes.io/component: tuner
{{- end }}
{{- if eq $.Values.topology "spread" }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "merit.selector" $ | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
  {{- end }}
{{- end }}
volumes:
  {{- include "merit.volumes" (dict "root" $ "role" .role) | nindent 2 }}
{{- end -}}
