// Ordinary work of a Java program: calls, sorting, text, numbers.
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

public class Steady {
    static List<String> words(long seed) {
        List<String> words = new ArrayList<>();
        for (long k = 0; k < 200; k++) words.add("w" + (seed * k) % 977);
        return words;
    }

    static Map<String, Integer> count(List<String> words) {
        Map<String, Integer> counts = new HashMap<>();
        for (String word : words) counts.merge(word, 1, Integer::sum);
        return counts;
    }

    static long render(Map<String, Integer> counts) {
        List<Map.Entry<String, Integer>> entries = new ArrayList<>(counts.entrySet());
        entries.sort(Comparator.comparing(Map.Entry::getValue));
        StringBuilder text = new StringBuilder();
        for (Map.Entry<String, Integer> entry : entries) text.append(entry.getKey());
        return text.chars().filter(c -> c == '7').count();
    }

    static long step(long seed) {
        return render(count(words(seed)));
    }

    public static void main(String[] args) {
        System.out.println("ready");
        for (long total = 0;;) total = (total + step(total + 7)) % 1000003;
    }
}
