package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

const (
	readyInterval = 50 * time.Millisecond
	readyPatience = 2 * time.Minute
)

// serve runs the API server on the store until ctx ends.
func serve(ctx context.Context, s state, store string, port uint16, flags []string) error {
	// Our own listener: a free port that was looked up first could be somebody else's by then.
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen for the API server: %w", err)
	}
	server := "https://" + listener.Addr().String()
	completed, err := configure(ctx, s, store, listener, flags)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- app.Run(ctx, completed) }()
	ready := make(chan error, 1)
	go func() { ready <- announce(ctx, s, server) }()
	select {
	case err := <-ended:
		return err
	case err := <-ready:
		if err != nil {
			return err
		}
	}
	return <-ended
}

// configure turns flags into options, as kube-apiserver's own command does.
func configure(
	ctx context.Context, s state, store string, listener net.Listener, flags []string,
) (options.CompletedOptions, error) {
	var none options.CompletedOptions
	all := options.NewServerRunOptions()
	all.SecureServing.Listener = listener
	set := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, named := range all.Flags().FlagSets {
		set.AddFlagSet(named)
	}
	key := s.file("service-account.key")
	ours := []string{
		"--etcd-servers=http://" + store,
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(listener.Addr().(*net.TCPAddr).Port),
		"--cert-dir=" + s.directory,
		"--token-auth-file=" + s.file("tokens.csv"),
		"--authorization-mode=RBAC",
		"--service-cluster-ip-range=10.96.0.0/16,fd00:96::/108",
		// The address of the Service `kubernetes` may not be loopback. Nobody dials it.
		"--advertise-address=192.0.2.1",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + key,
		"--service-account-signing-key-file=" + key,
		// Nothing makes the accounts that it would insist on.
		"--disable-admission-plugins=ServiceAccount",
	}
	if err := set.Parse(append(ours, flags...)); err != nil {
		return none, fmt.Errorf("flags for kube-apiserver: %w", err)
	}
	if err := all.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return none, err
	}
	completed, err := all.Complete(ctx)
	if err != nil {
		return none, err
	}
	return completed, utilerrors.NewAggregate(completed.Validate())
}

// announce waits until the API server is ready, writes the kubeconfig and says so.
func announce(ctx context.Context, s state, server string) error {
	// Only whether it answers is asked here. Those who use the kubeconfig check the certificate.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	last := ""
	for deadline := time.Now().Add(readyPatience); time.Now().Before(deadline); {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/readyz", nil)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+s.token)
		answer, err := client.Do(request)
		if err == nil {
			body, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				path, err := s.writeKubeconfig(server)
				if err == nil {
					fmt.Printf("ready server=%s kubeconfig=%s\n", server, path)
				}
				return err
			}
			last = string(body)
		} else {
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(readyInterval):
		}
	}
	return fmt.Errorf("the API server is not ready after %s: %s", readyPatience, last)
}
