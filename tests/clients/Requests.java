// Requests of Java's own client: URL, header, value, again and again.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.cert.X509Certificate;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManager;
import javax.net.ssl.X509TrustManager;

public class Requests {
    public static void main(String[] arguments) throws Exception {
        System.setProperty("jdk.internal.httpclient.disableHostnameVerification", "true");
        var anybody = new X509TrustManager() {
            public void checkClientTrusted(X509Certificate[] chain, String type) {}

            public void checkServerTrusted(X509Certificate[] chain, String type) {}

            public X509Certificate[] getAcceptedIssuers() {
                return new X509Certificate[0];
            }
        };
        var context = SSLContext.getInstance("TLS");
        context.init(null, new TrustManager[] {anybody}, null);
        var client = HttpClient.newBuilder().sslContext(context).build();
        for (int i = 0; i + 2 < arguments.length; i += 3) {
            var request =
                    HttpRequest.newBuilder(URI.create(arguments[i]))
                            .header(arguments[i + 1], arguments[i + 2])
                            .build();
            client.send(request, HttpResponse.BodyHandlers.ofString());
        }
    }
}
